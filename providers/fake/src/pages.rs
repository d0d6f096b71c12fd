//! Pages of `list`.

use infranetes_sdk::pod::{ListRequest, ListResponse};
use tokio::time::Instant;

use crate::convert;
use crate::error::CloudError;
use crate::state::State;

/// The page that a request asks for, in the order of creation.
pub(crate) fn list(
    state: &State,
    now: Instant,
    request: &ListRequest,
    default_size: u32,
) -> Result<ListResponse, CloudError> {
    let after = position(&request.page_token)?;
    let size = if request.page_size == 0 { default_size } else { request.page_size };
    let size = usize::try_from(size.max(1)).unwrap_or(usize::MAX);
    let tags = request.tags.clone().into_iter().collect();
    let mut rest = state.machines.values().filter(|record| {
        record.view.number > after && record.visible_at <= now && record.carries(&tags)
    });
    let page: Vec<_> = rest.by_ref().take(size).collect();
    let next_page_token = match (rest.next(), page.last()) {
        (Some(_), Some(last)) => page_token(last.view.number),
        _ => String::new(),
    };
    let machines = page.into_iter().map(|record| convert::machine(&record.view)).collect();
    Ok(ListResponse { machines, next_page_token })
}

/// The page after the machine or volume of this number.
pub(crate) fn page_token(number: u64) -> String {
    format!("{TOKEN}{number}")
}

/// The number after which a page begins.
pub(crate) fn position(token: &str) -> Result<u64, CloudError> {
    if token.is_empty() {
        return Ok(0);
    }
    token
        .strip_prefix(TOKEN)
        .and_then(|number| number.parse().ok())
        .ok_or_else(|| CloudError::Invalid(format!("{token:?} is no page token of this cloud")))
}

const TOKEN: &str = "after-";
