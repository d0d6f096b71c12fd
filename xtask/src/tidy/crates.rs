//! Crates: the edges between them, and what each must have.

use std::fs;
use std::path::Path;

use super::map::Map;
use crate::workspace::{Package, Workspace};

pub(super) fn check(workspace: &Workspace, map: &Map) -> Vec<String> {
    let names: Vec<&str> = workspace.packages.iter().map(|package| package.name.as_str()).collect();
    let mut findings: Vec<String> = map
        .rows_without(&names)
        .map(|name| format!("{name}: in ARCHITECTURE.md, but no such crate"))
        .collect();
    for package in &workspace.packages {
        let found = check_edges(workspace.root(), package, map).into_iter();
        findings.extend(
            found
                .chain(check_duties(workspace.root(), package, map))
                .map(|it| format!("{}: {it}", package.name)),
        );
    }
    findings
}

fn check_edges(root: &Path, package: &Package, map: &Map) -> Vec<String> {
    let Some(row) = map.row(&package.name) else {
        return vec!["not in the table of ARCHITECTURE.md".to_owned()];
    };
    let mut findings = Vec::new();
    let dir = package.dir().strip_prefix(root).unwrap_or(package.dir());
    if !row.is_at(dir) {
        findings.push(format!("lies in {}, not where ARCHITECTURE.md says", dir.display()));
    }
    for dependency in package.dependencies.iter().filter(|it| it.path.is_some()) {
        let of_tests = dependency.kind.as_deref() == Some("dev");
        if !row.allows(&dependency.name, of_tests) {
            let what = if of_tests { "its tests depend" } else { "depends" };
            findings.push(format!(
                "{what} on {}, which ARCHITECTURE.md does not allow",
                dependency.name
            ));
        }
    }
    findings
}

fn check_duties(root: &Path, package: &Package, map: &Map) -> Vec<String> {
    let mut findings = Vec::new();
    let manifest = fs::read_to_string(&package.manifest_path).unwrap_or_default();
    let may_have_own = map.unsafe_dirs.iter().any(|dir| root.join(dir) == package.dir());
    if !takes_lints(&manifest, may_have_own) {
        findings.push("its manifest lacks `[lints] workspace = true`".to_owned());
    }
    let roots = package.targets.iter().filter(|target| is_library_or_program(&target.kind));
    for target in roots {
        let source = fs::read_to_string(&target.src_path).unwrap_or_default();
        if !source.starts_with("//! ") {
            findings.push(format!("{} begins without a doc", target.src_path.display()));
        }
    }
    if package.is_published() {
        findings.extend(lacks(package).map(|it| format!("is published, but has no {it}")));
    }
    findings
}

/// What a registry, docs.rs or those who depend on a package miss of it.
fn lacks(package: &Package) -> impl Iterator<Item = String> {
    let duties = [
        (package.dir().join("README.md").is_file(), "README.md"),
        // A link to the one of this repository: a package carries its own.
        (package.dir().join("LICENSE").is_file(), "LICENSE"),
        (package.description.is_some(), "description"),
        (package.license.is_some(), "license"),
        ((1..=5).contains(&package.keywords.len()), "keywords (one to five)"),
        ((1..=5).contains(&package.categories.len()), "categories"),
        (package.metadata["docs"]["rs"].is_object(), "[package.metadata.docs.rs]"),
    ];
    // A dev-dependency without one is left out of the package, which is what an unpublished crate needs.
    let needed = package.dependencies.iter().filter(|it| it.kind.as_deref() != Some("dev"));
    let without = needed.filter(|it| it.path.is_some() && it.req == "*");
    let versions: Vec<_> = without.map(|it| format!("version for {}", it.name)).collect();
    let missing = duties.into_iter().filter(|(is_there, _)| !is_there);
    missing.map(|(_, what)| what.to_owned()).chain(versions)
}

/// The workspace's lints; a crate that is at home with `unsafe` cannot take those, and has a table of its own.
fn takes_lints(manifest: &str, may_have_own: bool) -> bool {
    let manifest = toml::from_str::<toml::Table>(manifest).unwrap_or_default();
    let Some(lints) = manifest.get("lints") else { return false };
    lints.get("workspace").and_then(toml::Value::as_bool) == Some(true)
        || may_have_own && lints.get("rust").is_some()
}

fn is_library_or_program(kinds: &[String]) -> bool {
    kinds.iter().any(|kind| matches!(kind.as_str(), "lib" | "rlib" | "cdylib" | "bin"))
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use super::*;
    use crate::workspace::Dependency;

    #[test]
    fn an_edge_that_the_table_lacks_is_found() {
        let found =
            |dependency, kind| check_edges(Path::new("/w"), &package(dependency, kind), &map());
        assert_eq!(found("sdk", None), Vec::<String>::new());
        assert_eq!(found("loader", Some("dev")), Vec::<String>::new());
        assert!(found("loader", None)[0].starts_with("depends on loader"));
        assert!(found("loader", Some("build"))[0].starts_with("depends on loader"));
        assert!(found("cri", Some("dev"))[0].starts_with("its tests depend on cri"));
    }

    #[test]
    fn a_crate_has_to_be_in_the_table_and_in_its_place() {
        let mut unknown = package("sdk", None);
        unknown.name = "new".to_owned();
        assert_eq!(check_edges(Path::new("/w"), &unknown, &map()).len(), 1);
        let mut moved = package("sdk", None);
        moved.manifest_path = PathBuf::from("/w/elsewhere/Cargo.toml");
        assert_eq!(check_edges(Path::new("/w"), &moved, &map()).len(), 1);
    }

    #[test]
    fn lints_are_those_of_the_workspace() {
        assert!(takes_lints("[lints]\nworkspace = true\n", false));
        assert!(!takes_lints("[package]\nname = \"a\"\n", true));
        assert!(!takes_lints("[lints.rust]\nmissing_docs = \"warn\"\n", false));
        assert!(takes_lints("[lints.rust]\nmissing_docs = \"warn\"\n", true));
    }

    #[test]
    fn a_package_that_is_published_is_complete() {
        let mut package = package("sdk", None);
        package.dependencies[0].req = "*".to_owned();
        let found: Vec<String> = lacks(&package).collect();
        assert_eq!(found.len(), 8, "{found:?}");
        assert_eq!(found[7], "version for sdk");
    }

    fn package(dependency: &str, kind: Option<&str>) -> Package {
        Package {
            name: "core".to_owned(),
            manifest_path: PathBuf::from("/w/core/Cargo.toml"),
            dependencies: vec![Dependency {
                name: dependency.to_owned(),
                kind: kind.map(str::to_owned),
                req: "^1".to_owned(),
                path: Some(PathBuf::from("/w").join(dependency)),
            }],
            publish: None,
            description: None,
            license: None,
            rust_version: None,
            keywords: Vec::new(),
            categories: Vec::new(),
            metadata: serde_json::Value::Null,
            targets: Vec::new(),
        }
    }

    fn map() -> Map {
        Map::parse(
            "<!-- tidy: crates -->\n\n| c | w | d | t |\n|-|-|-|-|\n| core | core | sdk | loader |\n\n\
             <!-- tidy: unsafe -->\n\n| w | y |\n|-|-|\n| a | b |\n\n<!-- tidy: top level -->\n\n- a\n",
        )
        .unwrap()
    }
}
