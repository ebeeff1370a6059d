//! Where the built `drover` is.

use std::path::PathBuf;

use anyhow::{Context as _, ensure};

/// `DROVER_BIN`, or the program beside this one: cargo puts all of a workspace's programs into one folder, and the tests'
/// into one below it.
pub(super) fn find() -> anyhow::Result<PathBuf> {
    let named = std::env::var_os("DROVER_BIN").map(PathBuf::from);
    let beside = || {
        let here = std::env::current_exe().ok()?;
        here.ancestors()
            .skip(1)
            .take(2)
            .map(|folder| folder.join("drover"))
            .find(|file| file.is_file())
    };
    let program = named.or_else(beside).context(
        "there is no built drover beside this program: run `make build`, or set DROVER_BIN",
    )?;
    ensure!(
        program.is_file(),
        "{} is not a file: DROVER_BIN must name the program",
        program.display()
    );
    Ok(program)
}
