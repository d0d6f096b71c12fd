//! Signals: an enum in CRI, the kernel's names in the engine.

use super::Refusal;
use crate::api::v1::Signal;

/// "SIGTERM", "SIGRTMIN+3"; empty for the default.
pub(super) fn name(field: &str, value: i32) -> Result<String, Refusal> {
    let signal = super::check::variant::<Signal>(field, value)?;
    if signal == Signal::RuntimeDefault {
        return Ok(String::new());
    }
    let name = signal.as_str_name().trim_start_matches("SIGNAL_");
    Ok(name.replace("PLUS", "+").replace("MINUS", "-"))
}

/// The enum's value; the default for names that CRI does not know.
pub(super) fn value(name: &str) -> Signal {
    let name = name.replace('+', "PLUS").replace('-', "MINUS");
    Signal::from_str_name(&format!("SIGNAL_{name}")).unwrap_or(Signal::RuntimeDefault)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_signal_of_cri_has_a_name_and_comes_back() {
        for number in 0..=65 {
            let name = name("f", number).unwrap();
            assert_eq!(value(&name) as i32, number, "{name}");
            assert_eq!(name.is_empty(), number == 0);
        }
        assert_eq!(name("f", Signal::Sigrtminplus3 as i32).unwrap(), "SIGRTMIN+3");
        assert_eq!(name("f", 66), Err(Refusal::invalid("f", "66 has no meaning")));
    }
}
