//! Both services behind one socket. A call for a service that nobody here knows is answered as gRPC wants it.

use std::convert::Infallible;
use std::future::{Ready, ready};
use std::task::{Context, Poll};
use std::time::Duration;

use futures::future::Either;
use tonic::Status;
use tonic::body::Body;
use tonic::codegen::{BoxFuture, Service, http};
use tonic::server::NamedService;

use super::{Cri, deadline};
use crate::api::v1::image_service_server::ImageServiceServer;
use crate::api::v1::runtime_service_server::RuntimeServiceServer;

type Request = http::Request<Body>;
type Response = http::Response<Body>;

/// The services of one server, by the path of the call.
#[derive(Clone)]
pub struct Services {
    runtime: RuntimeServiceServer<Cri>,
    images: ImageServiceServer<Cri>,
}

impl Services {
    /// The services of `cri`, with messages of at most its size in both directions.
    pub fn new(cri: Cri) -> Services {
        let limit = cri.0.message_bytes;
        Services {
            runtime: RuntimeServiceServer::new(cri.clone())
                .max_decoding_message_size(limit)
                .max_encoding_message_size(limit),
            images: ImageServiceServer::new(cri)
                .max_decoding_message_size(limit)
                .max_encoding_message_size(limit),
        }
    }
}

impl Service<Request> for Services {
    type Response = Response;
    type Error = Infallible;
    type Future = Either<BoxFuture<Response, Infallible>, Ready<Result<Response, Infallible>>>;

    /// Both are always ready.
    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request) -> Self::Future {
        let limit = deadline::of(request.headers());
        let answer = match service_of(request.uri().path()) {
            RuntimeServiceServer::<Cri>::NAME => self.runtime.call(request),
            ImageServiceServer::<Cri>::NAME => self.images.call(request),
            other => {
                let shown: String = other.chars().take(MAX_SHOWN).collect();
                let status = Status::unimplemented(format!("there is no service {shown:?} here"));
                return Either::Right(ready(Ok(status.into_http())));
            }
        };
        Either::Left(match limit {
            Some(limit) => Box::pin(within(limit, answer)),
            None => answer,
        })
    }
}

async fn within(
    limit: Duration,
    answer: BoxFuture<Response, Infallible>,
) -> Result<Response, Infallible> {
    match tokio::time::timeout(limit, answer).await {
        Ok(answer) => answer,
        Err(_) => {
            let status = Status::deadline_exceeded("the call took longer than its caller allowed");
            Ok(status.into_http())
        }
    }
}

/// `/package.Service/Method`.
fn service_of(path: &str) -> &str {
    path.trim_start_matches('/').split('/').next().unwrap_or_default()
}

const MAX_SHOWN: usize = 128;
