//! The promises of every container provider.

mod support;

use std::collections::HashMap;
use std::sync::Arc;

use infranetes_conformance::{ContainerSubject, ContainerSuite};
use support::{World, busybox_layer, gzip, image, isolated};

#[test]
fn the_provider_keeps_its_promises() {
    isolated("the_provider_keeps_its_promises", async || {
        let world = World::new().await;
        let layers = [gzip(&busybox_layer())];
        let image = image(&layers);
        let names = image.layers.iter().map(|layer| layer.digest.clone());
        let blobs: HashMap<_, _> = names.zip(layers).collect();
        let World { provider, dir, parent } = world;
        let suite = ContainerSuite::new(Arc::new(provider), ContainerSubject::new(image, blobs));
        let report = suite.run().await;
        println!("{report}");
        report.assert_ok();
        support::assert_clean(dir.path(), &parent);
        support::remove_cgroups(&parent);
    });
}
