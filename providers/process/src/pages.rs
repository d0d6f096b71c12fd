//! Pages of `list`.

use std::collections::BTreeMap;
use std::sync::Arc;

use infranetes_sdk::pod::{ListRequest, ListResponse};

use crate::convert;
use crate::error::ProcessError;
use crate::machine::Machine;

/// The page that a request asks for; `machines` are sorted by id.
pub(crate) fn list(
    machines: &[Arc<Machine>],
    request: &ListRequest,
) -> Result<ListResponse, ProcessError> {
    let after = match request.page_token.as_str() {
        "" => "",
        token => token.strip_prefix(TOKEN).filter(|id| id.starts_with("p-")).ok_or_else(|| {
            ProcessError::Invalid(format!("{token:?} is no page token of this provider"))
        })?,
    };
    let tags: BTreeMap<_, _> = request.tags.clone().into_iter().collect();
    let size = if request.page_size == 0 { DEFAULT_SIZE } else { request.page_size };
    let mut rest =
        machines.iter().map(|machine| (machine.record(), machine)).filter(|(record, _)| {
            record.id.as_str() > after
                && tags.iter().all(|(key, value)| record.tags.get(key) == Some(value))
        });
    let page: Vec<_> = rest.by_ref().take(size as usize).collect();
    let next_page_token = match (rest.next(), page.last()) {
        (Some(_), Some((last, _))) => format!("{TOKEN}{}", last.id),
        _ => String::new(),
    };
    let machines = page.iter().map(|(record, machine)| {
        convert::machine(record, machine.phase(), &machine.dir().socket())
    });
    let machines = machines.collect();
    Ok(ListResponse { machines, next_page_token })
}

const TOKEN: &str = "after-";
const DEFAULT_SIZE: u32 = 100;
