//! The kernel's command line, as far as it speaks to us: words that start with `infranetes.`.

use std::io;

use tracing::level_filters::LevelFilter;

use crate::lines;

pub(super) struct CommandLine(String);

impl CommandLine {
    pub(super) fn read() -> io::Result<Self> {
        std::fs::read_to_string("/proc/cmdline").map(Self)
    }

    /// `infranetes.ip=…`
    pub(super) fn ip(&self) -> Option<&str> {
        self.value("infranetes.ip=")
    }

    /// `infranetes.control=…`
    pub(super) fn control(&self) -> Option<&str> {
        self.value("infranetes.control=")
    }

    /// `infranetes.ipv6=off`: the network of the machine's own address has no IPv6.
    pub(super) fn no_ipv6(&self) -> bool {
        self.value("infranetes.ipv6=") == Some("off")
    }

    /// `infranetes.log=LEVEL`; a level that does not exist is as if none were given.
    pub(super) fn log(&self) -> Option<LevelFilter> {
        lines::parse_level(self.value("infranetes.log=")?)
    }

    fn value(&self, name: &str) -> Option<&str> {
        // As for the kernel, the last one counts.
        self.0.split_whitespace().filter_map(|word| word.strip_prefix(name)).next_back()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_word_counts_and_others_words_do_not() {
        let line = CommandLine(
            "console=ttyS0 infranetes.ip=1.1.1.1/8,1.1.1.2 ip=dhcp infranetes.ip=2.2.2.2/8,2.2.2.1 infranetes.log=debug\n"
                .to_owned(),
        );
        assert_eq!(line.ip(), Some("2.2.2.2/8,2.2.2.1"));
        assert_eq!(line.log(), Some(LevelFilter::DEBUG));
        assert_eq!(CommandLine("quiet infranetes.log=loud".into()).log(), None);
        assert_eq!(CommandLine("xinfranetes.ip=1".into()).ip(), None);
        for (text, off) in [
            ("infranetes.ipv6=off", true),
            ("infranetes.ipv6=off infranetes.ipv6=on", false),
            ("ipv6=off", false),
        ] {
            assert_eq!(CommandLine(text.into()).no_ipv6(), off, "{text}");
        }
    }
}
