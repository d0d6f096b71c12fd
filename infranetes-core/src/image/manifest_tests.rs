use serde_json::{Value, json};

use super::*;

fn digest(seed: &str) -> Digest {
    Digest::of(seed.as_bytes())
}

fn manifest(edit: impl FnOnce(&mut Value)) -> Vec<u8> {
    let mut document = json!({
        "schemaVersion": 2,
        "mediaType": OCI_MANIFEST,
        "config": {"mediaType": CONFIGS[0], "digest": digest("config").to_string(), "size": 7},
        "layers": [
            {"mediaType": LAYERS[1], "digest": digest("low").to_string(), "size": 10},
            {"mediaType": LAYERS[2], "digest": digest("high").to_string(), "size": 20},
        ],
        "annotations": {"note": "x"},
    });
    edit(&mut document);
    document.to_string().into_bytes()
}

/// Parses, and says in one line what came out.
fn parsed(bytes: &[u8], content_type: Option<&str>) -> String {
    match Document::parse(bytes, content_type) {
        Ok(Document::Image(image)) => format!("image of {} layers", image.layers.len()),
        Ok(Document::Index(entries)) => format!("index of {}", entries.len()),
        Err(error) => error.to_string(),
    }
}

#[test]
fn documents_are_told_apart_and_the_unsupported_is_named() {
    let index = json!({
        "schemaVersion": 2,
        "manifests": [{"digest": digest("m").to_string(), "size": 3, "mediaType": OCI_MANIFEST,
                       "platform": {"os": "linux", "architecture": "amd64"}}],
    })
    .to_string()
    .into_bytes();
    let cases = [
        (manifest(|_| ()), None, "image of 2 layers"),
        (manifest(|m| m["mediaType"] = Value::Null), Some(DOCKER_MANIFEST), "image of 2 layers"),
        (manifest(|m| m["mediaType"] = Value::Null), None, "image of 2 layers"),
        (index.clone(), Some(DOCKER_LIST), "index of 1"),
        (index, None, "index of 1"),
        (manifest(|m| m["schemaVersion"] = 1.into()), None, "schema 1"),
        (
            manifest(|m| m["mediaType"] = Value::Null),
            Some("application/vnd.docker.distribution.manifest.v1+prettyjws"),
            "schema 1",
        ),
        (manifest(|m| m["mediaType"] = "text/html".into()), None, "a manifest of the media type"),
        (
            manifest(|m| m["config"]["mediaType"] = "application/vnd.helm+json".into()),
            None,
            "a config of",
        ),
        (
            manifest(|m| m["layers"][1]["mediaType"] = "application/x-foreign".into()),
            None,
            "a layer of",
        ),
        (manifest(|m| m["layers"][0]["size"] = (-1).into()), None, "negative size"),
        (manifest(|m| m["layers"][0]["digest"] = "sha256:0".into()), None, "bad digest"),
        (manifest(|m| m["layers"] = Value::Null), None, "no layers"),
        (b"<html>".to_vec(), None, "not valid: line 1"),
        (Vec::new(), None, "not valid"),
    ];
    for (bytes, content_type, expected) in cases {
        let got = parsed(&bytes, content_type);
        assert!(got.contains(expected), "{got}, and not {expected}");
    }
}

#[test]
fn a_configuration_is_paired_with_its_layers() {
    let Ok(Document::Image(manifest)) = Document::parse(&manifest(|_| ()), None) else {
        panic!("no image")
    };
    let config = |diff_ids: &[String]| {
        json!({
            "os": "linux", "architecture": "arm64", "variant": "v8",
            "rootfs": {"type": "layers", "diff_ids": diff_ids},
            "config": {"Env": ["TOKEN=sesame"], "Entrypoint": ["/run"], "Cmd": null,
                       "User": "7:8", "WorkingDir": "/srv", "StopSignal": "SIGINT",
                       "Volumes": {"/data": {}}, "Labels": {"a": "b"}},
        })
        .to_string()
        .into_bytes()
    };
    let ids = [digest("a").to_string(), digest("b").to_string()];
    let image = manifest.with_config(&config(&ids)).unwrap();
    assert_eq!(image.layers[0].digest, digest("low"));
    assert_eq!(image.layers[1].diff_id, digest("b"));
    assert_eq!(image.config.entrypoint, ["/run"]);
    assert_eq!(image.config.cmd, Vec::<String>::new());
    assert_eq!(image.config.volumes, ["/data"]);
    assert_eq!(image.config.platform().to_string(), "linux/arm64/v8");
    assert!(!format!("{image:?}").contains("sesame"));

    assert!(manifest.with_config(&config(&ids[..1])).is_err());
    assert!(manifest.with_config(&config(&["x".into(), "y".into()])).is_err());
    let quoted = br#"{"rootfs": {"diff_ids": []}, "config": {"Env": "TOKEN=sesame"}}"#;
    let error = manifest.with_config(quoted).unwrap_err();
    assert!(!error.to_string().contains("sesame"), "{error}");
}

#[test]
fn an_index_without_the_platform_says_what_it_has() {
    let entry = |platform: Option<Platform>| IndexEntry {
        target: Descriptor { digest: digest("m"), size: 1, media_type: OCI_MANIFEST.into() },
        platform,
    };
    let wanted = Platform::linux("amd64");
    let unknown = Platform { os: "unknown".into(), architecture: "unknown".into(), variant: None };
    let others = [
        entry(Some(Platform::linux("arm64"))),
        entry(Some(Platform::linux("s390x"))),
        entry(Some(unknown)),
    ];
    let error = choose(&others, &wanted).unwrap_err();
    let sentence =
        "the image is for linux/arm64, linux/s390x, and the machines here are linux/amd64";
    assert_eq!(error.to_string(), sentence);
    assert!(choose(&[entry(None)], &wanted).is_ok());
    assert!(choose(&[], &wanted).is_err());
}
