//! Registries that fail, and what the one who waits for the image reads then.

use infranetes_core::image::{Credentials, ManifestError, PullFailure as F};

use crate::node::{APP, Node};
use crate::registry::{Act, Door, Image, PASSWORD, Registry, USER, publish_index};

/// What happens, what comes of it, and what the sentence must say.
struct Case {
    name: &'static str,
    part: &'static str,
    acts: Vec<Act>,
    expected: fn(&F) -> bool,
    sentence: &'static str,
}

/// Pulls from a registry that misbehaves, reads the error, and pulls again once it behaves.
async fn check(case: Case) {
    let registry = Registry::start().await;
    let image = Image::new(case.name, &[40_000, 100]);
    image.publish(&registry, "team/app", "1");
    registry.script(case.part, &case.acts);
    let node = Node::new(&registry).await;

    let error = node.pull().await.expect_err(case.name);
    assert!((case.expected)(error.failure()), "{}: {error:?}", case.name);
    let sentence = error.to_string();
    // What the image itself is wrong about is no registry's fault.
    let blamed = match error.failure() {
        F::Unusable(_) => "",
        _ => &registry.address,
    };
    for part in [case.sentence, APP, blamed] {
        assert!(sentence.contains(part), "{}: {part:?} is not in {sentence:?}", case.name);
    }
    assert!(node.store.list().is_empty(), "{}: half an image is no image", case.name);
    node.expect_honest_usage();

    registry.heal();
    node.pull().await.unwrap_or_else(|error| panic!("{}, healed: {error}", case.name));
    node.expect_whole(&image).await;
}

#[tokio::test]
async fn each_failure_has_its_type_and_a_sentence_and_leaves_a_store_that_works() {
    let case = |name, part, act: Act, expected, sentence| Case {
        name,
        part,
        acts: vec![act],
        expected,
        sentence,
    };
    let fault: fn(&F) -> bool = |f| matches!(f, F::RegistryFault { status: 503, attempts: 3, .. });
    let protocol: fn(&F) -> bool = |f| matches!(f, F::Protocol { .. });
    let cases = [
        case(
            "no such tag",
            "manifests",
            Act::Status(404, ""),
            |f| matches!(f, F::NotFound { .. }),
            "(reading the manifest): the registry",
        ),
        case(
            "no such blob",
            "blobs",
            Act::Status(404, ""),
            |f| matches!(f, F::NotFound { .. }),
            "has no such image (404)",
        ),
        case(
            "forbidden",
            "manifests",
            Act::Status(403, ""),
            |f| matches!(f, F::Forbidden { .. }),
            "does not allow this pull",
        ),
        case(
            "no credentials",
            "manifests",
            Act::Status(401, "WWW-Authenticate: Basic"),
            |f| matches!(f, F::Unauthorized { given: false, .. }),
            "the pull has none",
        ),
        case(
            "a challenge of an unknown kind",
            "manifests",
            Act::Status(401, "WWW-Authenticate: Negotiate"),
            |f| matches!(f, F::Unauthorized { given: false, .. }),
            "the pull has none",
        ),
        case("out of order", "manifests", Act::Status(503, ""), fault, "503"),
        case("out of order at a layer", "blobs", Act::Status(503, ""), fault, "3 attempts"),
        case(
            "throttled for long",
            "manifests",
            Act::Status(429, "Retry-After: 3600"),
            |f| matches!(f, F::Throttled { retry_after: Some(wait), .. } if wait.as_secs() == 3600),
            "left alone for 3600 s",
        ),
        case(
            "throttled again and again",
            "manifests",
            Act::Status(429, ""),
            |f| matches!(f, F::Throttled { retry_after: None, .. }),
            "limits requests",
        ),
        case(
            "silent",
            "manifests",
            Act::StallAfter(10),
            |f| matches!(f, F::Stalled { attempts: 3, .. }),
            "sent nothing for 0.4 s",
        ),
        case(
            "a manifest cut off",
            "manifests",
            Act::CutAfter(10),
            |f| matches!(f, F::Unreachable { .. }),
            "cannot be reached",
        ),
        case(
            "a layer cut off before its first byte",
            "blobs",
            Act::CutAfter(0),
            |f| matches!(f, F::CutOff { have: 0, .. } | F::Unreachable { .. }),
            "attempts were made",
        ),
        case(
            "other bytes",
            "blobs",
            Act::Bytes(vec![7; 100]),
            |f| matches!(f, F::WrongDigest { .. }),
            "instead of sha256:",
        ),
        case(
            "too many bytes",
            "blobs/sha256:",
            Act::Bytes(vec![7; 5 << 20]),
            |f| matches!(f, F::TooLarge { .. }),
            "bytes that are accepted",
        ),
        case(
            "a huge manifest",
            "manifests",
            Act::Bytes(vec![b' '; 5 << 20]),
            |f| matches!(f, F::TooLarge { limit: 4194304, .. }),
            "4194304 bytes",
        ),
        case(
            "no JSON",
            "manifests",
            Act::Status(200, "Content-Type: text/html"),
            |f| matches!(f, F::Unusable(ManifestError::Malformed { .. })),
            "the image cannot be used",
        ),
        case(
            "a loop",
            "manifests",
            Act::Redirect("/v2/team/app/manifests/1".into()),
            protocol,
            "redirects more than 5 times",
        ),
        case(
            "a redirect to nowhere",
            "manifests",
            Act::Redirect("ftp://x/y".into()),
            protocol,
            "no HTTP URL",
        ),
        case("an odd status", "manifests", Act::Status(418, ""), protocol, "status 418"),
    ];
    for case in cases {
        check(case).await;
    }
}

#[tokio::test]
async fn what_goes_by_is_waited_for() {
    let registry = Registry::start().await;
    let image = Image::new("patient", &[10_000]);
    image.publish(&registry, "team/app", "1");
    let acts = [Act::Status(500, ""), Act::Status(429, "Retry-After: 0"), Act::Well];
    registry.script("manifests", &acts);
    registry.script("blobs", &[Act::Status(502, ""), Act::CutAfter(0), Act::Well]);
    let node = Node::new(&registry).await;
    node.pull().await.unwrap();
    node.expect_whole(&image).await;
    assert_eq!(registry.asked("manifests").len(), 3);
}

#[tokio::test]
async fn a_registry_that_is_down_is_named_with_the_cause() {
    let registry = Registry::start().await;
    let node = Node::new(&registry).await;
    let address = registry.address.clone();
    drop(registry);
    let error = node.pull().await.unwrap_err();
    assert!(matches!(error.failure(), F::Unreachable { attempts: 3, .. }), "{error:?}");
    assert!(error.failure().is_transient());
    assert!(error.to_string().contains(&format!("the registry {address} cannot be reached")));
    let mut chain = String::new();
    let mut cause = std::error::Error::source(&error);
    while let Some(error) = cause {
        chain += &format!(": {error}");
        cause = error.source();
    }
    assert!(chain.contains("refused"), "{chain}");
}

#[tokio::test]
async fn an_image_for_other_machines_is_refused_with_what_there_is() {
    let registry = Registry::start().await;
    let sparc = Image::for_architecture("a", &[10], "sparc");
    let mips = Image::for_architecture("b", &[10], "mips");
    publish_index(&registry, "team/app", "1", &[("sparc", &sparc), ("mips", &mips)]);
    sparc.publish(&registry, "team/single", "1");
    let node = Node::new(&registry).await;
    for (reference, exists) in
        [(APP, "linux/sparc, linux/mips"), ("reg.test/team/single:1", "linux/sparc")]
    {
        let error = node.store.pull(reference, None).await.unwrap_err();
        let F::Unusable(cause @ ManifestError::OtherPlatform { .. }) = error.failure() else {
            panic!("{error:?}")
        };
        assert!(cause.to_string().contains(&format!("is for {exists}, and")), "{cause}");
    }
    assert!(registry.asked(&sparc.layer(0).to_string()).is_empty(), "no layer was downloaded");
}

#[tokio::test]
async fn a_reference_by_digest_gets_that_content_or_nothing() {
    let registry = Registry::start().await;
    let image = Image::new("pinned", &[1000]);
    image.publish(&registry, "team/app", "1");
    let node = Node::new(&registry).await;
    let reference = format!("reg.test/team/app:9@{}", image.digest());
    let id = node.store.pull(&reference, None).await.unwrap();
    let info = node.store.status(&reference).unwrap();
    assert_eq!((info.id, info.repo_tags.len()), (id, 0), "its tag was never looked at");

    let other = Image::new("other", &[1000]);
    let path = format!("/v2/team/app/manifests/{}", other.digest());
    registry.put(path, "application/vnd.oci.image.manifest.v1+json", image.manifest.clone());
    let reference = format!("reg.test/team/app@{}", other.digest());
    let error = node.store.pull(&reference, None).await.unwrap_err();
    assert!(matches!(error.failure(), F::WrongDigest { .. }), "{error:?}");
    for bad in ["", "UPPER", "a b"] {
        let error = node.store.pull(bad, None).await.unwrap_err();
        assert!(matches!(error.failure(), F::Reference(_)), "{error:?}");
    }
}

#[tokio::test]
async fn wrong_credentials_are_told_from_none_and_never_shown() {
    let registry = Registry::start().await;
    Image::new("closed", &[10]).publish(&registry, "team/app", "1");
    let tokens = registry.give_tokens_to(Some(USER));
    let node = Node::new(&registry).await;
    for door in [Door::Basic(USER, PASSWORD), tokens] {
        registry.close(door);
        let wrong = Credentials::basic(USER, "mellon-7");
        let error = node.pull_as(Some(wrong)).await.unwrap_err();
        assert!(matches!(error.failure(), F::Unauthorized { given: true, .. }), "{error:?}");
        let shown = format!("{error} {error:?}");
        assert!(!shown.contains("mellon"), "{shown}");
        let error = node.pull().await.unwrap_err();
        assert!(matches!(error.failure(), F::Unauthorized { given: false, .. }), "{error:?}");
    }
}

#[tokio::test]
async fn a_pull_that_takes_too_long_ends() {
    let registry = Registry::start().await;
    Image::new("slow", &[1000]).publish(&registry, "team/app", "1");
    registry.script("blobs", &[Act::StallAfter(3)]);
    let limits = infranetes_core::image::Limits {
        whole: std::time::Duration::from_millis(300),
        ..Default::default()
    };
    let node = Node::with_limits(registry.endpoint(), vec![], limits).await;
    let error = node.pull().await.unwrap_err();
    assert!(matches!(error.failure(), F::TimedOut { .. }), "{error:?}");
    assert!(error.to_string().contains("(reading the configuration)"), "{error}");
}

#[tokio::test]
async fn a_full_disk_is_named_and_what_filled_it_is_given_back() {
    let registry = Registry::start().await;
    let image = Image::new("big", &[5000]);
    image.publish(&registry, "team/app", "1");
    let node = Node::new(&registry).await;
    // Writing to this device fails just as writing to a full disk does.
    let name = image.layer(0).to_string().replace(':', "-");
    let partial = node.root().join("partial").join(name);
    std::os::unix::fs::symlink("/dev/full", &partial).unwrap();
    let error = node.pull().await.unwrap_err();
    assert!(matches!(error.failure(), F::DiskFull { .. }), "{error:?}");
    assert!(error.to_string().contains("is full"), "{error}");
    std::fs::remove_file(&partial).unwrap();
    node.pull().await.unwrap();
    node.expect_whole(&image).await;
}
