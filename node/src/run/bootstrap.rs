//! The token that lets whoever can read this node's data folder make a cluster of it, and nothing else.

use std::fs;
use std::io::Write;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::Path;

use rand::RngCore;

use super::Error;
use crate::grpc::BootstrapToken;

/// Its file in the data folder.
pub const BOOTSTRAP_TOKEN: &str = "admin.token";
/// 256 bits: not to be guessed.
const BYTES: usize = 32;

/// Reads the token, or makes one. The folder is made with it, readable by its owner only.
pub(super) fn open(data: &Path) -> Result<BootstrapToken, Error> {
    let file = data.join(BOOTSTRAP_TOKEN);
    let problem = |problem: &dyn std::fmt::Display| {
        Error::Failed(format!("cannot use {}: {problem}", file.display()))
    };
    if !file.exists() {
        make(data, &file).map_err(|error| problem(&error))?;
    }
    let text = fs::read_to_string(&file).map_err(|error| problem(&error))?;
    BootstrapToken::new(&text)
        .ok_or_else(|| problem(&"it is too short to be safe: delete it, the next start makes one"))
}

/// Under another name first, so that nobody reads half a token; and synced, or a power loss could leave the name without it.
fn make(data: &Path, file: &Path) -> std::io::Result<()> {
    fs::DirBuilder::new().recursive(true).mode(0o700).create(data)?;
    let mut token = [0; BYTES];
    rand::rng().fill_bytes(&mut token);
    let unfinished = file.with_extension("new");
    let mut written = fs::OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(&unfinished)?;
    written.write_all(hex::encode(token).as_bytes())?;
    written.sync_all()?;
    fs::rename(unfinished, file)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn the_token_is_made_once_and_is_for_its_owner_only() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let data = folder.path().join("data");
        open(&data).expect("a token");
        let file = data.join(BOOTSTRAP_TOKEN);
        let first = fs::read_to_string(&file).expect("a file");
        assert_eq!(file.metadata().expect("a file").permissions().mode() & 0o777, 0o600);
        open(&data).expect("the same token");
        assert_eq!(fs::read_to_string(&file).expect("a file"), first);
    }
}
