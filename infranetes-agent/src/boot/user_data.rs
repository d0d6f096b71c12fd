//! What the hypervisor hands in. Two ways, the first that has something counts: an OEM string of the firmware's tables
//! (SMBIOS type 11), a file of the firmware's configuration device (fw_cfg).

use std::io;
use std::path::Path;

use zeroize::Zeroizing;

use super::modules::{FIRMWARE, ModuleError, Modules};

/// The user-data's bytes.
pub(super) fn read(modules: &Modules) -> Result<Zeroizing<Vec<u8>>, UserDataError> {
    if let Some(table) = read_file(OEM_STRINGS)?
        && let Some(text) = oem_string(&table)
    {
        return Ok(Zeroizing::new(text.to_vec()));
    }
    if !Path::new(FW_CFG_DIR).exists() {
        modules.load(FIRMWARE)?;
    }
    read_file(FW_CFG)?.ok_or(UserDataError::Nowhere)
}

fn read_file(path: &str) -> Result<Option<Zeroizing<Vec<u8>>>, UserDataError> {
    match std::fs::read(path) {
        Ok(bytes) => Ok(Some(Zeroizing::new(bytes))),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(cause) => Err(UserDataError::Unreadable { path: path.to_owned(), cause }),
    }
}

/// The first string of the table that is a JSON object. The table's first part is as long as its second byte says; then
/// follow strings, each ended by a NUL.
fn oem_string(table: &[u8]) -> Option<&[u8]> {
    let length = usize::from(*table.get(1)?);
    let strings = table.get(length..)?;
    strings.split(|byte| *byte == 0).find(|text| text.first() == Some(&b'{'))
}

/// Why there is no user-data.
#[derive(Debug, thiserror::Error)]
pub enum UserDataError {
    /// Nobody handed anything in.
    #[error("neither an SMBIOS OEM string nor the fw_cfg file opt/infranetes/user-data is there")]
    Nowhere,
    /// A source exists and cannot be read.
    #[error("{path} cannot be read")]
    Unreadable {
        /// Which.
        path: String,
        /// Why.
        #[source]
        cause: io::Error,
    },
    /// The driver of a source cannot be loaded.
    #[error("the driver for fw_cfg cannot be used")]
    Driver(#[from] ModuleError),
}

const OEM_STRINGS: &str = "/sys/firmware/dmi/entries/11-0/raw";
const FW_CFG_DIR: &str = "/sys/firmware/qemu_fw_cfg";
const FW_CFG: &str = "/sys/firmware/qemu_fw_cfg/by_name/opt/infranetes/user-data/raw";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_string_that_is_an_object_is_found() {
        let table = b"\x0b\x05\x00\x01\x02some vendor\0{\"version\":1}\0\0";
        assert_eq!(oem_string(table), Some(&b"{\"version\":1}"[..]));
        assert_eq!(oem_string(b"\x0b\x05\x00\x01\x01vendor\0\0"), None);
        assert_eq!(oem_string(b"\x0b"), None);
        assert_eq!(oem_string(b""), None);
        assert_eq!(oem_string(b"\x0b\xff\x00"), None);
    }
}
