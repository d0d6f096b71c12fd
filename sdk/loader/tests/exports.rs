//! What a plugin's file shows to others: two symbols, a manifest, and the libraries of the system.

mod common;

use common::fixture;
use object::{Object, ObjectSection, ObjectSymbol};

#[test]
fn a_plugin_exports_two_symbols_and_no_more() {
    let data = std::fs::read(fixture("hello")).expect("read the fixture");
    let file = object::File::parse(&*data).expect("an ELF file");
    let mut names: Vec<&str> = file
        .dynamic_symbols()
        .filter(|symbol| symbol.is_definition())
        .map(|symbol| symbol.name().expect("a name"))
        .collect();
    names.sort_unstable();
    assert_eq!(
        names,
        ["INFRANETES_MANIFEST_V1_fixture_hello", "INFRANETES_PROVIDER_V1_fixture_hello"]
    );
}

#[test]
fn a_manifest_is_text_that_people_can_read() {
    let data = std::fs::read(fixture("hello")).expect("read the fixture");
    let file = object::File::parse(&*data).expect("an ELF file");
    let section = file.section_by_name(".infranetes").expect("the section");
    let text = String::from_utf8(section.data().expect("its bytes").to_vec()).expect("text");
    for line in ["infranetes provider", "abi=1.0.0", "name=infranetes-loader", "panic=unwind"] {
        assert!(text.lines().any(|found| found == line), "{line:?} is missing in {text:?}");
    }
}

#[test]
fn a_manifest_can_be_read_without_loading() {
    let vetted = infranetes_loader::vet(&fixture("hello"), None).expect("a good file");
    assert_eq!(vetted.manifest.symbol, "INFRANETES_PROVIDER_V1_fixture_hello");
    assert_eq!(vetted.digest().expect("a digest").len(), 64);
}
