//! A page of documentation as a script: what a reader would do with it, done.
//!
//! | block | what is done |
//! |---|---|
//! | `sh` | run, with `set -e`; it has to succeed, unless `<!-- fails -->` stands above |
//! | `text` | each line has to be in the output of the last `sh`, in this order; `…` stands for anything |
//! | `diff` | applied |
//! | any, below `<!-- file: PATH -->` | written to that file |
//!
//! A block of any other kind is an error, so that nothing stands on a page without being tried.

use std::fs;
use std::path::PathBuf;

use anyhow::{Context, Result, bail, ensure};

use crate::author::Workshop;

/// Something to do.
#[derive(Debug, PartialEq, Eq)]
struct Block {
    /// The line of the page where it begins, from 1.
    line: usize,
    what: What,
    text: String,
}

#[derive(Debug, PartialEq, Eq)]
enum What {
    Shell { fails: bool },
    Output,
    Change,
    File(String),
}

/// Does what a page says, in a directory of its own.
pub fn follow(page: &str, workshop: &Workshop) -> Result<()> {
    let mut reader = Reader { workshop, dir: workshop.path().to_owned(), output: String::new() };
    let blocks = blocks(page)?;
    ensure!(!blocks.is_empty(), "there is nothing to do on this page");
    for block in blocks {
        reader.follow(&block).with_context(|| format!("line {}", block.line))?;
    }
    Ok(())
}

struct Reader<'w> {
    workshop: &'w Workshop,
    /// Where the reader is.
    dir: PathBuf,
    /// Of the last commands.
    output: String,
}

impl Reader<'_> {
    fn follow(&mut self, block: &Block) -> Result<()> {
        match &block.what {
            What::Shell { fails } => self.run(&block.text, *fails),
            What::Output => find(&block.text, &self.output),
            What::File(path) => Ok(fs::write(self.dir.join(path), &block.text)?),
            What::Change => {
                let change = self.workshop.path().join("change.diff");
                fs::write(&change, &block.text)?;
                self.run(&format!("git apply {}", change.display()), false)
            }
        }
    }

    fn run(&mut self, script: &str, fails: bool) -> Result<()> {
        let place = self.workshop.path().join("place");
        let script = format!("trap 'pwd > {}' EXIT\n{script}", place.display());
        let output = self.workshop.shell(&self.dir, &script)?;
        self.output = String::from_utf8_lossy(&output.stdout).into_owned();
        ensure!(output.status.success() != fails, "{}: {}", output.status, self.output);
        self.dir = fs::read_to_string(place)?.trim_end().into();
        if self.dir.join("Cargo.toml").exists() {
            self.workshop.settle(&self.dir)?;
        }
        Ok(())
    }
}

/// The lines of `expected` are in `output`, in their order.
fn find(expected: &str, output: &str) -> Result<()> {
    let mut lines = output.lines();
    for wanted in expected.lines() {
        let found = lines.any(|line| matches(wanted, line));
        ensure!(found, "{wanted:?} is not, or not there, in the output:\n{output}");
    }
    Ok(())
}

/// Whether the pieces between `…` are in a line, in their order, the first one at its beginning.
fn matches(wanted: &str, line: &str) -> bool {
    let mut pieces = wanted.split('…').map(str::trim_end);
    let first = pieces.next().unwrap_or_default();
    let Some(rest) = line.strip_prefix(first) else { return false };
    pieces
        .try_fold(rest, |rest, piece| {
            let piece = piece.trim_start();
            rest.find(piece).map(|at| &rest[at + piece.len()..])
        })
        .is_some()
}

fn blocks(page: &str) -> Result<Vec<Block>> {
    let mut blocks = Vec::new();
    let mut lines = page.lines().enumerate();
    let mut above = "";
    while let Some((at, line)) = lines.next() {
        let Some(kind) = line.strip_prefix("```") else {
            above = line;
            continue;
        };
        let text: Vec<&str> =
            lines.by_ref().map(|(_, line)| line).take_while(|line| *line != "```").collect();
        let text = text.join("\n") + "\n";
        let note = above.strip_prefix("<!-- ").and_then(|note| note.strip_suffix(" -->"));
        let what = match (kind, note) {
            (_, Some(note)) if note.starts_with("file: ") => {
                What::File(note.trim_start_matches("file: ").to_owned())
            }
            ("sh", note) => What::Shell { fails: note == Some("fails") },
            ("text", None) => What::Output,
            ("diff", None) => What::Change,
            _ => bail!("line {}: nobody knows what to do with {kind:?} and {note:?}", at + 1),
        };
        blocks.push(Block { line: at + 1, what, text });
        above = "";
    }
    Ok(blocks)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_are_what_their_kind_and_the_line_above_say() {
        let page = "a\n```sh\nls\n```\n<!-- fails -->\n```sh\nx\n```\n```text\ny\n```\n\
                    <!-- file: a/b.rs -->\n```rust\nfn f() {}\n```\n```diff\n+1\n```\n";
        let found: Vec<_> =
            blocks(page).unwrap().into_iter().map(|it| (it.line, it.what)).collect();
        let expected = [
            (2, What::Shell { fails: false }),
            (6, What::Shell { fails: true }),
            (9, What::Output),
            (13, What::File("a/b.rs".into())),
            (16, What::Change),
        ];
        assert_eq!(found, expected);
    }

    #[test]
    fn a_block_that_nobody_tries_is_refused() {
        let error = blocks("```rust\nfn f() {}\n```\n").unwrap_err().to_string();
        assert!(error.starts_with("line 1: nobody knows"), "{error}");
    }

    #[test]
    fn output_is_compared_line_by_line_in_order() {
        let output = "one 1 ms x\ntwo\nthree 3 ms y\n";
        for good in ["one … x\nthree … y\n", "two\n", "three …\n", "on\n"] {
            assert!(find(good, output).is_ok(), "{good}");
        }
        for bad in ["three … y\none … x\n", "four\n", "one … y\n", "ne 1\n"] {
            assert!(find(bad, output).is_err(), "{bad}");
        }
    }
}
