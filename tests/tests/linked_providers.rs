//! Several providers in one program: each is a plugin of its own as a file, and together they link without a clash.

use std::time::Duration;

use infranetes_loader::{LoadError, Loader, PluginSpec};
use infranetes_provider_fake::Fake;
use infranetes_provider_oci::Oci;
use infranetes_provider_qemu::Qemu;
use infranetes_sdk::pod::DescribePodRequest;
use infranetes_sdk::{CallContext, Plugin};

#[tokio::test]
async fn several_providers_link_into_one_program_and_run() {
    let loader = Loader::new();
    let spec = PluginSpec::new("fake", "").with_config_json("{}");
    let fake = loader.link::<Fake>(spec).await.expect("it starts");
    let pods = fake.pods().expect("it makes machines");
    let context = CallContext::new("r1").with_timeout(Duration::from_secs(5));
    let able = pods.describe(context, DescribePodRequest {}).await.expect("an answer");
    assert!(able.user_data_limit_bytes > 0);

    // The others are there, too, and refuse what they cannot read.
    refuses::<Oci>(&loader).await;
    refuses::<Qemu>(&loader).await;
}

async fn refuses<P: Plugin>(loader: &Loader) {
    let spec = PluginSpec::new("other", "").with_config_json(r#"{"no such key":1}"#);
    let error = loader.link::<P>(spec).await.expect_err("the configuration is wrong");
    assert!(matches!(error, LoadError::Start { .. }), "{error:?}");
}

#[test]
fn a_file_with_several_providers_is_no_plugin() {
    // This very program holds the manifests of all that it links.
    let program = std::env::current_exe().expect("the path of this test");
    let error = infranetes_loader::vet(&program, None).expect_err("it holds several");
    assert!(matches!(error, LoadError::SeveralProviders { count: 3.., .. }), "{error:?}");
    for name in ["fake", "oci", "qemu"] {
        assert!(error.to_string().contains(&format!("infranetes-provider-{name}")), "{error}");
    }
}
