//! The ABI as text, compared with the file in the repository: whatever changes it has to be meant.
//!
//! After a change that docs/abi.md allows: `INFRANETES_UPDATE_GOLDEN=1 cargo test -p infranetes-abi --test type_graph`.

use std::collections::BTreeSet;
use std::fmt::Write;

use infranetes_abi::PluginModuleRef;
use infranetes_abi::abi_stable::StableAbi;
use infranetes_abi::abi_stable::type_layout::{TLData, TLField, TypeLayout};

#[test]
fn the_type_graph_is_the_one_in_the_repository() {
    let graph = render(<PluginModuleRef as StableAbi>::LAYOUT);
    // Of this run, not of the build: clones may share what is built.
    let package = std::env::var("CARGO_MANIFEST_DIR").expect("run by cargo");
    let path = &format!("{package}/tests/golden/abi-1.txt");
    if std::env::var_os("INFRANETES_UPDATE_GOLDEN").is_some() {
        std::fs::write(path, &graph).expect("write the golden file");
    }
    let golden = std::fs::read_to_string(path).expect("read the golden file");
    assert!(graph.contains("RawRequest"), "the walk did not reach RawRequest:\n{graph}");
    if let Some((line, (is, was))) =
        graph.lines().zip(golden.lines()).enumerate().find(|(_, (is, was))| is != was)
    {
        panic!("the ABI changed at line {}:\n  was {was}\n  is  {is}\nread docs/abi.md", line + 1);
    }
    assert_eq!(graph.lines().count(), golden.lines().count(), "read docs/abi.md");
}

fn render(root: &'static TypeLayout) -> String {
    let mut text = String::new();
    let mut seen = BTreeSet::new();
    let mut queue = vec![root];
    while let Some(layout) = queue.pop() {
        // By its text, because the names of generic types leave their parameters out.
        let (block, inner) = render_type(layout);
        if seen.insert(block.clone()) {
            text.push_str(&block);
            queue.extend(inner);
        }
    }
    text
}

fn render_type(layout: &'static TypeLayout) -> (String, Vec<&'static TypeLayout>) {
    let (package, version) = layout.package_and_version();
    let (name, size, alignment) = (layout.full_type(), layout.size(), layout.alignment());
    let mut block = format!("{name} ({package} {version}) size {size} alignment {alignment}\n");
    let mut inner = Vec::new();
    for field in fields_of(layout).iter().chain(&layout.phantom_fields().to_vec()) {
        writeln!(block, "  {}: {}", field.name(), field.full_type()).expect("text grows");
        inner.push(field.layout());
        for function in field.function_range().iter() {
            writeln!(block, "    {}", function.to_string().trim_end()).expect("text grows");
            let parameters = function.param_type_layouts.iter();
            inner.extend(parameters.chain(function.return_type_layout()).map(|layout| layout()));
        }
    }
    (block, inner)
}

fn fields_of(layout: &'static TypeLayout) -> Vec<TLField> {
    match layout.data() {
        TLData::Struct { fields } | TLData::Union { fields } => fields.to_vec(),
        TLData::Enum(variants) => variants.fields.to_vec(),
        TLData::PrefixType(prefix) => prefix.fields.to_vec(),
        TLData::Primitive(_) | TLData::Opaque => Vec::new(),
    }
}
