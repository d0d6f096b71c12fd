//! Where a path of the node belongs, told by its name alone. The names are the kubelet's.

use std::path::{Component, Path, PathBuf};

use super::NodePath;

/// Where a path belongs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Place {
    /// An emptyDir, and a path in it, which may be empty.
    EmptyDir { volume: NodePath, part: PathBuf },
    /// Something that the kubelet writes for the pod and containers read.
    Kept { path: NodePath, follow: Follow },
    /// A volume of another kind, which has something behind it.
    Plugin { path: NodePath, plugin: String, name: String, follow: Follow },
    /// Where the kubelet mounts a part of a volume for one container.
    SubPath(NodePath),
    /// Any other path of the node.
    Host(PathBuf),
}

/// Whether a copy follows what it is a copy of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Follow {
    Yes,
    No,
}

/// Places a path. It is absolute and has no `..`.
pub(crate) fn place(path: &Path, kubelet_dir: &Path, pod_uid: &str) -> Place {
    let host = || Place::Host(path.to_owned());
    // The uid becomes part of a path.
    if pod_uid.is_empty() || pod_uid.contains('/') || matches!(pod_uid, "." | "..") {
        return host();
    }
    let pod = Path::new(PODS).join(pod_uid);
    let Ok(below) = path.strip_prefix(kubelet_dir.join(&pod)) else { return host() };
    let names: Option<Vec<&str>> = below
        .components()
        .map(|part| match part {
            Component::Normal(name) => name.to_str(),
            _ => None,
        })
        .collect();
    let Some(names) = names else { return host() };
    let at = |below: &Path| NodePath { root: kubelet_dir.to_owned(), below: pod.join(below) };
    let whole = |rest: &[&str]| if rest.is_empty() { Follow::Yes } else { Follow::No };
    match names.as_slice() {
        ["volumes", plugin, name, rest @ ..] => match *plugin {
            EMPTY_DIR => Place::EmptyDir {
                volume: at(&Path::new("volumes").join(plugin).join(name)),
                part: rest.iter().collect(),
            },
            plugin if KEPT.contains(&plugin) => {
                Place::Kept { path: at(below), follow: whole(rest) }
            }
            plugin => {
                // A CSI driver mounts into a directory of this name.
                let rest = if rest == ["mount"] { &[] } else { rest };
                Place::Plugin {
                    path: at(below),
                    plugin: plugin.replacen('~', "/", 1),
                    name: (*name).to_owned(),
                    follow: whole(rest),
                }
            }
        },
        ["volume-subpaths", _, _, _] => Place::SubPath(at(below)),
        // Of the pod's own directory only what stands in it is a container's; not its volumes all together.
        [] | ["volumes" | "volume-subpaths", ..] => host(),
        ["etc-hosts"] => Place::Kept { path: at(below), follow: Follow::Yes },
        _ => Place::Kept { path: at(below), follow: Follow::No },
    }
}

const PODS: &str = "pods";
const EMPTY_DIR: &str = "kubernetes.io~empty-dir";
/// What the kubelet writes itself.
const KEPT: [&str; 4] = [
    "kubernetes.io~configmap",
    "kubernetes.io~secret",
    "kubernetes.io~projected",
    "kubernetes.io~downward-api",
];

#[cfg(test)]
mod tests {
    use super::*;

    /// A place in a few words.
    fn words(place: &Place) -> String {
        let path = |path: &NodePath| {
            assert_eq!(path.root, Path::new("/k"));
            path.below.strip_prefix("pods/u1").unwrap().display().to_string()
        };
        match place {
            Place::EmptyDir { volume, part } => {
                format!("empty {} [{}]", path(volume), part.display())
            }
            Place::Kept { path: kept, follow } => format!("kept {} {follow:?}", path(kept)),
            Place::Plugin { path: kept, plugin, name, follow } => {
                format!("plugin {plugin} {name} {} {follow:?}", path(kept))
            }
            Place::SubPath(part) => format!("part {}", path(part)),
            Place::Host(host) => format!("host {}", host.display()),
        }
    }

    #[test]
    fn a_path_belongs_where_the_kubelet_puts_such_paths() {
        let cases = [
            (
                "/k/pods/u1/volumes/kubernetes.io~empty-dir/v",
                "empty volumes/kubernetes.io~empty-dir/v []",
            ),
            (
                "/k/pods/u1/volumes/kubernetes.io~empty-dir/v/a/b",
                "empty volumes/kubernetes.io~empty-dir/v [a/b]",
            ),
            (
                "/k/pods/u1/volumes/kubernetes.io~secret/s",
                "kept volumes/kubernetes.io~secret/s Yes",
            ),
            (
                "/k/pods/u1/volumes/kubernetes.io~configmap/s",
                "kept volumes/kubernetes.io~configmap/s Yes",
            ),
            (
                "/k/pods/u1/volumes/kubernetes.io~projected/s",
                "kept volumes/kubernetes.io~projected/s Yes",
            ),
            (
                "/k/pods/u1/volumes/kubernetes.io~downward-api/s",
                "kept volumes/kubernetes.io~downward-api/s Yes",
            ),
            (
                "/k/pods/u1/volumes/kubernetes.io~secret/s/key",
                "kept volumes/kubernetes.io~secret/s/key No",
            ),
            ("/k/pods/u1/etc-hosts", "kept etc-hosts Yes"),
            ("/k/pods/u1/containers/web/0a1b", "kept containers/web/0a1b No"),
            ("/k/pods/u1/volume-subpaths/v/web/0", "part volume-subpaths/v/web/0"),
            (
                "/k/pods/u1/volumes/kubernetes.io~csi/pvc/mount",
                "plugin kubernetes.io/csi pvc volumes/kubernetes.io~csi/pvc/mount Yes",
            ),
            (
                "/k/pods/u1/volumes/kubernetes.io~nfs/n",
                "plugin kubernetes.io/nfs n volumes/kubernetes.io~nfs/n Yes",
            ),
            (
                "/k/pods/u1/volumes/kubernetes.io~nfs/n/deep",
                "plugin kubernetes.io/nfs n volumes/kubernetes.io~nfs/n/deep No",
            ),
            // Not one of this pod's things.
            ("/k/pods/u1", "host /k/pods/u1"),
            ("/k/pods/u1/volumes", "host /k/pods/u1/volumes"),
            (
                "/k/pods/u1/volumes/kubernetes.io~secret",
                "host /k/pods/u1/volumes/kubernetes.io~secret",
            ),
            ("/k/pods/u1/volume-subpaths/v", "host /k/pods/u1/volume-subpaths/v"),
            (
                "/k/pods/u2/volumes/kubernetes.io~secret/s",
                "host /k/pods/u2/volumes/kubernetes.io~secret/s",
            ),
            ("/k/pods/u11/etc-hosts", "host /k/pods/u11/etc-hosts"),
            ("/k/plugins/x", "host /k/plugins/x"),
            ("/tmp", "host /tmp"),
            ("/", "host /"),
        ];
        for (path, expected) in cases {
            assert_eq!(words(&place(Path::new(path), Path::new("/k"), "u1")), expected, "{path}");
        }
    }

    #[test]
    fn a_uid_that_is_a_path_owns_nothing() {
        for uid in ["", ".", "..", "u1/volumes", "../pods/u1", "/"] {
            let path = Path::new("/k/pods/u1/volumes/kubernetes.io~secret/s");
            assert_eq!(place(path, Path::new("/k"), uid), Place::Host(path.to_owned()), "{uid}");
        }
        let dotted = Path::new("/k/pods/u1/../u2/etc-hosts");
        assert_eq!(place(dotted, Path::new("/k"), "u1"), Place::Host(dotted.to_owned()));
    }
}
