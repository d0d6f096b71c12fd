//! Checks what compilers do not: that the map in `ARCHITECTURE.md` is true, and habits of `STYLE.md` that can be counted.
//!
//! All findings are listed, not the first alone.

mod crates;
mod docs;
mod map;
mod sources;

use std::fs;

use anyhow::{Context, Result, bail};

use crate::workspace::Workspace;

pub(crate) fn run(workspace: &Workspace) -> Result<()> {
    let path = workspace.root().join("ARCHITECTURE.md");
    let text = fs::read_to_string(&path).context("ARCHITECTURE.md cannot be read")?;
    let map = map::Map::parse(&text).context("ARCHITECTURE.md")?;
    let files = workspace.files()?;
    let mut findings = crates::check(workspace, &map);
    findings.extend(map.check_top_level(&files));
    findings.extend(sources::check(workspace, &map, &files)?);
    findings.extend(docs::check(workspace, &files)?);
    if findings.is_empty() {
        println!("tidy: {} crates, {} files", workspace.packages.len(), files.len());
        return Ok(());
    }
    for finding in &findings {
        eprintln!("tidy: {finding}");
    }
    bail!("tidy has {} findings", findings.len())
}
