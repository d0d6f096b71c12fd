//! The kernel of a Debian package: the compressed image as it is, and the ELF file that is in it.
//!
//! QEMU starts the ELF file by its PVH entry. That saves the guest from decompressing it, which is slow where the processor
//! is emulated: a quarter of the whole boot.

use std::fs;
use std::path::PathBuf;

use anyhow::{Context, Result, ensure};

use super::{Unpacked, lz4};

/// What a kernel package brings.
#[derive(Debug)]
pub(super) struct Kernel {
    /// As `uname -r` says it.
    pub(super) release: String,
    /// The compressed image, for machines that boot by firmware.
    pub(super) image: Vec<u8>,
    /// The directory with `kernel/` and `modules.builtin`.
    pub(super) modules: PathBuf,
    pub(super) package: Unpacked,
}

impl Kernel {
    /// In the one package that has a kernel.
    pub(super) fn find(packages: &[Unpacked]) -> Result<Kernel> {
        let found = packages.iter().find_map(|package| {
            let boot = fs::read_dir(package.dir.join("boot")).ok()?;
            let mut names = boot.filter_map(|entry| entry.ok()?.file_name().into_string().ok());
            let release =
                names.find_map(|name| name.strip_prefix("vmlinuz-").map(str::to_owned))?;
            Some((package.clone(), release))
        });
        let (package, release) = found.context("none of the packages has a kernel")?;
        let image = package.dir.join("boot").join(format!("vmlinuz-{release}"));
        let image = fs::read(&image).context("the kernel cannot be read")?;
        let dirs =
            ["usr/lib/modules", "lib/modules"].map(|dir| package.dir.join(dir).join(&release));
        let modules = dirs.into_iter().find(|dir| dir.is_dir());
        let modules = modules.with_context(|| format!("{} has no modules", package.name))?;
        Ok(Kernel { release, image, modules, package })
    }

    /// The ELF file.
    pub(super) fn elf(&self) -> Result<Vec<u8>> {
        elf_of_image(&self.image).with_context(|| format!("kernel {}", self.release))
    }
}

/// Reads the boot header (linux: Documentation/arch/x86/boot.rst) and decompresses what it points to.
fn elf_of_image(image: &[u8]) -> Result<Vec<u8>> {
    let word = |at: usize| -> Result<usize> {
        let bytes =
            image.get(at..).and_then(<[u8]>::first_chunk).context("the image is cut off")?;
        Ok(usize::try_from(u32::from_le_bytes(*bytes))?)
    };
    ensure!(image.get(0x202..0x206) == Some(b"HdrS"), "this is no x86 kernel image");
    let setup_sectors = usize::from(image[0x1f1]);
    let payload = (setup_sectors + 1) * 512 + word(0x248)?;
    let length = word(0x24c)?;
    let payload = image.get(payload..).and_then(|rest| rest.get(..length));
    let payload = payload.context("the image is cut off")?;
    ensure!(lz4::is_legacy_frame(payload), "it is compressed in a way that is not known here");
    // The size when decompressed follows the payload's own data.
    let (stream, size) = payload.split_last_chunk().context("the image is cut off")?;
    let size = usize::try_from(u32::from_le_bytes(*size))?;
    let elf = lz4::decompress(stream, size)?;
    ensure!(elf.starts_with(b"\x7fELF"), "there is no ELF file in it");
    Ok(elf)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_elf_file_is_found_behind_the_setup_code() {
        assert_eq!(elf_of_image(&image(b"\x7fELF and more")).unwrap(), b"\x7fELF and more");
    }

    #[test]
    fn other_files_are_refused() {
        assert!(elf_of_image(b"short").is_err());
        assert!(elf_of_image(&image(b"no elf, though")).is_err());
        let mut cut = image(b"\x7fELF");
        cut.pop();
        assert!(elf_of_image(&cut).is_err());
    }

    /// An image with two sectors of setup code and a payload of at most 15 bytes, stored as one literal.
    fn image(content: &[u8]) -> Vec<u8> {
        let mut payload = 0x184c_2102_u32.to_le_bytes().to_vec();
        payload.extend((content.len() as u32 + 1).to_le_bytes());
        payload.push((content.len() as u8) << 4);
        payload.extend(content);
        payload.extend((content.len() as u32).to_le_bytes());
        let mut image = vec![0; 3 * 512 + 0x10];
        image[0x1f1] = 2;
        image[0x202..0x206].copy_from_slice(b"HdrS");
        image[0x248..0x24c].copy_from_slice(&0x10_u32.to_le_bytes());
        image[0x24c..0x250].copy_from_slice(&(payload.len() as u32).to_le_bytes());
        image.extend(payload);
        image
    }
}
