//! `drover dev`: a hub on this machine that needs nothing else.

use clap::Args;

use super::Failure;

#[derive(Debug, Args)]
pub(super) struct Arguments {}

pub(super) fn call(arguments: Arguments) -> Result<(), Failure> {
    let Arguments {} = arguments;
    Err(Failure::Failed("not in this version yet".to_owned()))
}
