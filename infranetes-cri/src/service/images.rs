//! Images of the node.

use std::error::Error;
use std::time::SystemTime;

use infranetes_core::error::FailureKind;
use tonic::Status;

use super::Cri;
use crate::api::v1;
use crate::convert;

impl Cri {
    pub(super) async fn pull_image(
        &self,
        request: v1::PullImageRequest,
    ) -> Result<v1::PullImageResponse, Status> {
        let image = convert::image_reference(request.image).map_err(convert::from_refusal)?;
        let credentials = convert::credentials(request.auth).map_err(convert::from_refusal)?;
        let pulled = self.images().pull(&image, credentials).await;
        let id = pulled.map_err(|error| convert::pull_failed(&error))?;
        Ok(v1::PullImageResponse { image_ref: id.to_string() })
    }

    pub(super) fn image_status(
        &self,
        request: v1::ImageStatusRequest,
    ) -> Result<v1::ImageStatusResponse, Status> {
        let image = convert::image_reference(request.image).map_err(convert::from_refusal)?;
        let image = self.images().status(&image).as_ref().map(convert::image);
        Ok(v1::ImageStatusResponse { image, info: Default::default() })
    }

    pub(super) fn list_images(&self, request: v1::ListImagesRequest) -> v1::ListImagesResponse {
        let wanted = request.filter.and_then(|filter| filter.image).map(|image| image.image);
        let images = match wanted.filter(|wanted| !wanted.is_empty()) {
            Some(wanted) => self.images().status(&wanted).into_iter().collect(),
            None => self.images().list(),
        };
        v1::ListImagesResponse { images: images.iter().map(convert::image).collect() }
    }

    pub(super) async fn remove_image(
        &self,
        request: v1::RemoveImageRequest,
    ) -> Result<v1::RemoveImageResponse, Status> {
        let image = convert::image_reference(request.image).map_err(convert::from_refusal)?;
        self.images().remove(&image).await.map_err(|error| internal(&error))?;
        Ok(v1::RemoveImageResponse {})
    }

    pub(super) fn image_usage(&self) -> v1::ImageFsInfoResponse {
        convert::image_usage(&self.images().usage(), SystemTime::now())
    }
}

fn internal(error: &(dyn Error + 'static)) -> Status {
    convert::from_kind(FailureKind::Internal, error)
}
