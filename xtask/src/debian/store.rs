//! Packages that are fetched and unpacked, not installed. What was fetched once is not fetched again, without any look at the network.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::program::{Program, is_installed};
use crate::progress::Progress;

/// A directory of packages, with a list of what is in it.
#[derive(Debug)]
pub(crate) struct Store {
    dir: PathBuf,
}

/// A package as fetched.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub(crate) struct Fetched {
    pub(crate) name: String,
    pub(crate) version: String,
    pub(crate) sha256: String,
    file: String,
}

/// What is written down of an earlier run.
#[derive(Debug, Deserialize, Serialize)]
struct Index {
    wanted: Vec<String>,
    packages: Vec<Fetched>,
}

impl Store {
    pub(crate) fn new(dir: PathBuf) -> Store {
        Store { dir }
    }

    /// Forgets what was fetched, so that the newest versions are fetched next.
    pub(crate) fn forget(&self) -> Result<()> {
        match fs::remove_dir_all(&self.dir) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                Err(error).with_context(|| format!("{} cannot be emptied", self.dir.display()))
            }
            _ => Ok(()),
        }
    }

    /// These packages with all that they depend on, sorted by name. Fetches at most once.
    pub(crate) fn get(&self, wanted: &[&str], progress: &Progress) -> Result<Vec<Fetched>> {
        if let Some(index) = self.index()
            && index.wanted == wanted
            && index.packages.iter().all(|package| self.deb(package).is_file())
        {
            progress.note(&format!("{} packages are there already", index.packages.len()));
            return Ok(index.packages);
        }
        let packages = self.fetch(wanted, progress)?;
        let wanted = wanted.iter().map(|&name| name.to_owned()).collect();
        let index = Index { wanted, packages };
        write(&self.index_path(), &serde_json::to_vec_pretty(&index)?)?;
        Ok(index.packages)
    }

    /// The directory with the package's files.
    pub(crate) fn unpack(&self, package: &Fetched) -> Result<PathBuf> {
        let dir = self.dir.join("unpacked").join(format!("{}_{}", package.name, package.version));
        if dir.is_dir() {
            return Ok(dir);
        }
        let bytes = fs::read(self.deb(package)).context("a fetched package cannot be read")?;
        let found = hex::encode(Sha256::digest(&bytes));
        ensure!(
            found == package.sha256,
            "{} is damaged: its SHA-256 is {found}, not {}; remove {} and try again",
            package.file,
            package.sha256,
            self.dir.display()
        );
        // Under another name until it is whole: an interruption leaves nothing that looks unpacked.
        let partial = dir.with_extension("partial");
        if partial.exists() {
            fs::remove_dir_all(&partial)?;
        }
        create_dir(&partial)?;
        let unpack = Program::new("dpkg-deb").arg("-x").arg(self.deb(package)).arg(&partial);
        unpack.output().with_context(|| format!("{} cannot be unpacked", package.file))?;
        fs::rename(&partial, &dir)?;
        Ok(dir)
    }

    /// Takes over what another store fetched, packed.
    pub(crate) fn copy_debs_of(&self, other: &Store) -> Result<()> {
        create_dir(&self.dir.join("debs"))?;
        let index = other.index().context("the other store is empty")?;
        for package in &index.packages {
            fs::copy(other.deb(package), self.deb(package))
                .context("a package cannot be copied")?;
        }
        write(&self.index_path(), &fs::read(other.index_path())?)
    }

    fn fetch(&self, wanted: &[&str], progress: &Progress) -> Result<Vec<Fetched>> {
        for tool in ["apt-get", "apt-cache", "dpkg-deb"] {
            ensure!(is_installed(tool), "{tool} is not here: the guest image is made on Debian");
        }
        let debs = self.dir.join("debs");
        create_dir(&debs)?;
        let options = self.lists_that_know(wanted, progress)?;
        let names = closure(wanted, &depends(wanted, &options)?);
        let apt = || Program::new("apt-get").args(&options).arg("download").dir(&debs);
        let uris = apt().arg("--print-uris").args(&names).output()?;
        let packages = uris.lines().map(fetched_of_uri).collect::<Result<Vec<_>>>()?;
        let missing = names.iter().find(|name| !packages.iter().any(|p| &p.name == *name));
        if let Some(missing) = missing {
            bail!("apt-get knows no place to fetch {missing} from");
        }
        progress.note(&format!("fetching {} packages", packages.len()));
        let fetch = apt().args(["-q", "-q", "-o", "APT::Sandbox::User=root"]).args(&names);
        fetch.output().with_context(|| {
            format!("packages cannot be fetched into {} (no network? disk full?)", debs.display())
        })?;
        Ok(packages)
    }

    /// Options under which apt-get knows the packages: the machine's lists if they do, else lists of our own, which need no root.
    fn lists_that_know(&self, wanted: &[&str], progress: &Progress) -> Result<Vec<String>> {
        if knows(wanted, &[])? {
            return Ok(Vec::new());
        }
        progress.note("updating a list of packages of our own");
        let lists = self.dir.join("lists");
        create_dir(&lists.join("partial"))?;
        let options: Vec<String> = [
            format!("Dir::State::lists={}", lists.display()),
            format!("Dir::Cache::pkgcache={}", self.dir.join("pkgcache.bin").display()),
            format!("Dir::Cache::srcpkgcache={}", self.dir.join("srcpkgcache.bin").display()),
            "APT::Sandbox::User=root".to_owned(),
        ]
        .into_iter()
        .flat_map(|option| ["-o".to_owned(), option])
        .collect();
        let update = Program::new("apt-get").args(&options).args(["-q", "-q", "update"]);
        update.output().context("the lists of packages cannot be fetched (no network?)")?;
        let unknown: Vec<&str> = wanted
            .iter()
            .copied()
            .filter(|name| !knows(&[name], &options).unwrap_or(false))
            .collect();
        ensure!(
            unknown.is_empty(),
            "the package sources of this machine do not have: {}",
            unknown.join(", ")
        );
        Ok(options)
    }

    fn index(&self) -> Option<Index> {
        serde_json::from_slice(&fs::read(self.index_path()).ok()?).ok()
    }

    fn index_path(&self) -> PathBuf {
        self.dir.join("index.json")
    }

    fn deb(&self, package: &Fetched) -> PathBuf {
        self.dir.join("debs").join(&package.file)
    }
}

fn knows(packages: &[&str], options: &[String]) -> Result<bool> {
    let uris = Program::new("apt-get").args(options).args(["download", "--print-uris"]);
    Ok(uris.args(packages).outcome()?.status.success())
}

/// For every package that could be met on the way: its first choices.
fn depends(wanted: &[&str], options: &[String]) -> Result<BTreeMap<String, Vec<String>>> {
    let list = Program::new("apt-cache")
        .args(options)
        .args(["depends", "--recurse", "--no-recommends", "--no-suggests", "--no-conflicts"])
        .args(["--no-breaks", "--no-replaces", "--no-enhances"])
        .args(wanted)
        .output()?;
    Ok(parse_depends(&list))
}

/// Reads the list of `apt-cache depends`: a package in the first column, what it depends on below. `|` marks all
/// alternatives but the last; the first one is the packager's choice.
fn parse_depends(list: &str) -> BTreeMap<String, Vec<String>> {
    let mut depends: BTreeMap<String, Vec<String>> = BTreeMap::new();
    let mut package = String::new();
    let mut is_alternative = false;
    for line in list.lines() {
        if !line.starts_with(' ') {
            package = line.trim().to_owned();
            depends.entry(package.clone()).or_default();
            is_alternative = false;
            continue;
        }
        // Deeper lines list who provides a virtual package.
        let Some((kind, name)) = line.split_once(": ").filter(|_| !line.starts_with("    ")) else {
            continue;
        };
        let kind = kind.trim();
        if !is_alternative && kind.trim_start_matches('|').ends_with("Depends") {
            depends.entry(package.clone()).or_default().push(name.trim().to_owned());
        }
        is_alternative = kind.starts_with('|');
    }
    depends
}

fn closure(wanted: &[&str], depends: &BTreeMap<String, Vec<String>>) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    let mut open: Vec<String> = wanted.iter().map(|&name| name.to_owned()).collect();
    while let Some(name) = open.pop() {
        let is_kernel_tooling = NOT_IN_A_GUEST.contains(&name.as_str());
        // Virtual packages are written in angle brackets; none of ours matters for a library.
        if is_kernel_tooling || name.starts_with('<') || !found.insert(name.clone()) {
            continue;
        }
        open.extend(depends.get(&name).into_iter().flatten().cloned());
    }
    found
}

/// What a kernel package depends on to make an initramfs on the machine where it is installed; we make ours.
const NOT_IN_A_GUEST: [&str; 3] = ["initramfs-tools", "kmod", "linux-base"];

/// Reads a line of `apt-get download --print-uris`: 'URI' FILE SIZE SHA256:DIGEST.
fn fetched_of_uri(line: &str) -> Result<Fetched> {
    let fetched = || {
        let mut words = line.split(' ').skip(1);
        let file = words.next()?;
        let sha256 = words.nth(1)?.strip_prefix("SHA256:")?;
        let mut parts = file.strip_suffix(".deb")?.splitn(3, '_');
        let (name, version) = (parts.next()?, parts.next()?);
        Some(Fetched {
            name: name.to_owned(),
            version: version.replace("%3a", ":"),
            sha256: sha256.to_owned(),
            file: file.to_owned(),
        })
    };
    fetched().with_context(|| format!("apt-get says of a package what cannot be read: {line}"))
}

fn create_dir(dir: &Path) -> Result<()> {
    fs::create_dir_all(dir).with_context(|| format!("{} cannot be made", dir.display()))
}

fn write(path: &Path, bytes: &[u8]) -> Result<()> {
    fs::write(path, bytes).with_context(|| format!("{} cannot be written", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_alternative_is_taken_and_virtual_packages_are_not() {
        let list = "crun\n  Depends: libc6\n |Depends: libsystemd0\n  Depends: libelogind0\n  Depends: <virtual>\n    \
                    provider\nlibc6\n  PreDepends: libgcc-s1\nlibsystemd0\nlibelogind0\n  Depends: other\nlibgcc-s1\n";
        let names = closure(&["crun"], &parse_depends(list));
        assert_eq!(
            names.into_iter().collect::<Vec<_>>(),
            ["crun", "libc6", "libgcc-s1", "libsystemd0"]
        );
    }

    #[test]
    fn dependencies_in_a_circle_end() {
        let list = "libc6\n  Depends: libgcc-s1\nlibgcc-s1\n  Depends: libc6\n";
        assert_eq!(closure(&["libc6"], &parse_depends(list)).len(), 2);
    }

    #[test]
    fn a_line_of_apt_names_package_version_and_digest() {
        let line = "'http://mirror.example/pool/q/qemu_10%3a1.0%2bds.deb' qemu_1%3a10.0+ds-2_amd64.deb 77 SHA256:ab12";
        let package = fetched_of_uri(line).unwrap();
        assert_eq!(
            (package.name.as_str(), package.version.as_str(), package.sha256.as_str()),
            ("qemu", "1:10.0+ds-2", "ab12")
        );
        assert!(fetched_of_uri("nonsense").is_err());
        assert!(fetched_of_uri("'uri' name.deb 7 MD5Sum:ab").is_err());
    }

    #[test]
    fn a_damaged_package_is_not_unpacked() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::new(dir.path().to_owned());
        let package = Fetched {
            name: "a".to_owned(),
            version: "1".to_owned(),
            sha256: hex::encode(Sha256::digest(b"whole")),
            file: "a_1_amd64.deb".to_owned(),
        };
        create_dir(&dir.path().join("debs")).unwrap();
        write(&store.deb(&package), b"half").unwrap();
        let error = store.unpack(&package).unwrap_err();
        assert!(error.to_string().contains("is damaged"), "{error}");
        assert!(!dir.path().join("unpacked").exists());
    }
}
