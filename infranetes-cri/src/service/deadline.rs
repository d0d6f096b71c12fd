//! The deadline that a caller sends with its call.
//!
//! The server would cut such a call off by itself, with CANCELLED: to a caller whose own clock has not rung yet, that reads as
//! if somebody had given up. gRPC's word for it is DEADLINE_EXCEEDED.

use std::time::Duration;

use tonic::codegen::http::HeaderMap;

/// How long a call may take, a little less than the caller and the server give it, so that it ends here.
pub(super) fn of(headers: &HeaderMap) -> Option<Duration> {
    let value = headers.get("grpc-timeout")?.to_str().ok()?;
    let (digits, unit) = value.split_at_checked(value.len().checked_sub(1)?)?;
    // As gRPC has it: at most 8 digits, then the unit.
    if digits.is_empty() || digits.len() > 8 || !digits.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    let amount: u64 = digits.parse().ok()?;
    let limit = match unit {
        "H" => Duration::from_secs(amount * 3600),
        "M" => Duration::from_secs(amount * 60),
        "S" => Duration::from_secs(amount),
        "m" => Duration::from_millis(amount),
        "u" => Duration::from_micros(amount),
        "n" => Duration::from_nanos(amount),
        _ => return None,
    };
    Some(limit.saturating_sub(EARLIER))
}

/// More than the grain of the clock that rings.
const EARLIER: Duration = Duration::from_millis(2);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_deadline_is_read_as_grpc_writes_it() {
        for (value, expected) in [
            ("1H", Some(3_599_998)),
            ("2M", Some(119_998)),
            ("3S", Some(2998)),
            ("5m", Some(3)),
            ("1m", Some(0)),
            ("4000u", Some(2)),
            ("99999999n", Some(97)),
            ("", None),
            ("S", None),
            ("1", None),
            ("-1S", None),
            ("123456789S", None),
            ("1x", None),
            ("1é", None),
        ] {
            let mut headers = HeaderMap::new();
            if let Ok(value) = value.parse() {
                headers.insert("grpc-timeout", value);
            }
            let read = of(&headers).map(|limit| limit.as_millis());
            assert_eq!(read, expected, "{value:?}");
        }
        assert_eq!(of(&HeaderMap::new()), None);
    }
}
