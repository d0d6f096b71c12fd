//! The parts of `ARCHITECTURE.md` that are checked. Each follows a comment `<!-- tidy: NAME -->`.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};

/// What the page says.
#[derive(Debug)]
pub(super) struct Map {
    rows: Vec<Row>,
    /// Directories whose files may have `unsafe` in them.
    pub(super) unsafe_dirs: Vec<PathBuf>,
    top_level: BTreeSet<String>,
}

/// What a crate may depend on.
#[derive(Debug)]
pub(super) struct Row {
    name: String,
    dir: String,
    edges: Edges,
    test_edges: Edges,
}

#[derive(Debug, Eq, PartialEq)]
enum Edges {
    Everything,
    These(BTreeSet<String>),
}

impl Map {
    pub(super) fn parse(text: &str) -> Result<Map> {
        let rows = table(text, "crates")?.into_iter().map(Row::parse).collect::<Result<_>>()?;
        let unsafe_rows = table(text, "unsafe")?.into_iter();
        let unsafe_dirs = unsafe_rows.filter_map(|row| row.into_iter().next().map(PathBuf::from));
        let list = part(text, "top level")?.into_iter().filter_map(|line| line.strip_prefix("- "));
        let top_level: BTreeSet<String> = list.map(|name| name.trim().to_owned()).collect();
        ensure!(!top_level.is_empty(), "its list of the top level is empty");
        Ok(Map { rows, unsafe_dirs: unsafe_dirs.collect(), top_level })
    }

    /// The row of a crate; the last one that fits, so that a pattern can stand above an exception to it.
    pub(super) fn row(&self, name: &str) -> Option<&Row> {
        self.rows.iter().rev().find(|row| fits(&row.name, name))
    }

    /// Rows that stand for no crate.
    pub(super) fn rows_without(&self, crates: &[&str]) -> impl Iterator<Item = &str> {
        let unused = |row: &&Row| !crates.iter().any(|name| fits(&row.name, name));
        self.rows.iter().filter(unused).map(|row| row.name.as_str())
    }

    pub(super) fn check_top_level(&self, files: &[PathBuf]) -> Vec<String> {
        let first = |path: &PathBuf| Some(path.iter().next()?.to_string_lossy().into_owned());
        let found: BTreeSet<String> =
            files.iter().filter_map(first).filter(|name| !name.starts_with('.')).collect();
        let surplus = found.difference(&self.top_level);
        let missing = self.top_level.difference(&found);
        surplus
            .map(|name| format!("{name}: not an entry of the top level in ARCHITECTURE.md"))
            .chain(missing.map(|name| format!("{name}: in ARCHITECTURE.md, but not there")))
            .collect()
    }
}

impl Row {
    fn parse(cells: Vec<String>) -> Result<Row> {
        let Ok([name, dir, edges, test_edges]) = <[String; 4]>::try_from(cells) else {
            bail!("a row of the crates does not have four cells");
        };
        Ok(Row { name, dir, edges: Edges::parse(&edges), test_edges: Edges::parse(&test_edges) })
    }

    pub(super) fn is_at(&self, dir: &Path) -> bool {
        fits(&self.dir, &dir.to_string_lossy())
    }

    /// Whether the crate, or its tests, may depend on another of ours.
    pub(super) fn allows(&self, other: &str, of_tests: bool) -> bool {
        self.edges.contains(other) || of_tests && self.test_edges.contains(other)
    }
}

impl Edges {
    fn parse(cell: &str) -> Edges {
        if cell == "everything" {
            return Edges::Everything;
        }
        let names = cell.split(',').map(str::trim).filter(|name| !name.is_empty());
        Edges::These(names.map(str::to_owned).collect())
    }

    fn contains(&self, name: &str) -> bool {
        match self {
            Edges::Everything => true,
            Edges::These(names) => names.contains(name),
        }
    }
}

/// A `*` at the end stands for anything.
fn fits(pattern: &str, name: &str) -> bool {
    match pattern.strip_suffix('*') {
        Some(start) => name.starts_with(start),
        None => pattern == name,
    }
}

/// The cells of the table in a part, without its head.
fn table(text: &str, name: &str) -> Result<Vec<Vec<String>>> {
    let rows = part(text, name)?.into_iter().filter(|line| line.starts_with('|')).skip(2);
    let cells = |line: &str| {
        let inner = line.trim().trim_start_matches('|').trim_end_matches('|');
        // An asterisk is escaped in Markdown.
        inner.split('|').map(|cell| cell.trim().replace("\\*", "*")).collect::<Vec<_>>()
    };
    let rows: Vec<_> = rows.map(cells).collect();
    ensure!(!rows.is_empty(), "its table \"{name}\" has no rows");
    Ok(rows)
}

/// The lines from the comment until a table or list has ended.
fn part<'a>(text: &'a str, name: &str) -> Result<Vec<&'a str>> {
    let mark = format!("<!-- tidy: {name} -->");
    let mut lines = text.lines().skip_while(|line| line.trim() != mark);
    lines.next().with_context(|| format!("it lacks the comment {mark}"))?;
    Ok(lines.skip_while(|line| line.is_empty()).take_while(|line| !line.is_empty()).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_page_says_which_edges_are_allowed() {
        let map = Map::parse(PAGE).unwrap();
        let allows = |name: &str, other: &str, tests| map.row(name).unwrap().allows(other, tests);
        assert!(allows("core", "sdk", false));
        assert!(!allows("core", "cri", false));
        assert!(!allows("provider-a", "loader", false));
        assert!(allows("provider-a", "loader", true));
        assert!(allows("tests", "anything", false));
        assert!(map.row("unknown").is_none());
        assert_eq!(map.rows_without(&["core", "tests"]).collect::<Vec<_>>(), ["provider-*"]);
        assert!(map.row("provider-a").unwrap().is_at(Path::new("providers/a")));
        assert!(!map.row("core").unwrap().is_at(Path::new("elsewhere")));
    }

    #[test]
    fn the_top_level_holds_what_the_page_lists() {
        let map = Map::parse(PAGE).unwrap();
        let check = |files: &[&str]| {
            map.check_top_level(&files.iter().map(PathBuf::from).collect::<Vec<_>>())
        };
        assert_eq!(check(&["README.md", "core/src/lib.rs", ".ci/run"]), Vec::<String>::new());
        assert_eq!(check(&["README.md", "core/src/lib.rs", "scripts/x.sh"]).len(), 1);
        assert_eq!(check(&["README.md"]).len(), 1);
    }

    #[test]
    fn a_page_without_its_parts_is_refused() {
        let error = |text: &str| Map::parse(text).unwrap_err().to_string();
        assert!(error("# Architecture").contains("lacks the comment"));
        assert!(error("<!-- tidy: crates -->\n\nno table").contains("no rows"));
        assert!(error(&PAGE.replace("| core | core | sdk | |", "| core |")).contains("four cells"));
    }

    const PAGE: &str = "\
text

<!-- tidy: crates -->

| crate | where | on | tests |
|---|---|---|---|
| core | core | sdk | |
| provider-\\* | providers/\\* | sdk | loader |
| tests | tests | everything | |

<!-- tidy: unsafe -->

| where | why |
|---|---|
| sdk/abi | reason |

<!-- tidy: top level -->

- README.md
- core

more text
";
}
