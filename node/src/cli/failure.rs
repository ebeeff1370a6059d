//! How a command fails: a message for people, an exit code for scripts and supervisors.

use std::fmt;

use crate::run;

/// Why a command did not do what was asked.
#[derive(Debug)]
pub enum Failure {
    /// Anything that the message explains.
    Failed(String),
    /// The arguments or the configuration are wrong: the same command fails again until they are changed.
    Usage(String),
    /// The hub stopped by itself, or never started.
    Run(run::Error),
}

impl Failure {
    /// 1 and 2 as everywhere; from 10 on what a supervisor of nodes should tell apart.
    pub fn code(&self) -> u8 {
        match self {
            Self::Failed(_) | Self::Run(run::Error::Failed(_)) => 1,
            Self::Usage(_) => 2,
            Self::Run(run::Error::Listen { .. }) => 10,
            Self::Run(run::Error::Storage(_)) => 11,
        }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Failed(message) | Self::Usage(message) => f.write_str(message),
            Self::Run(error) => error.fmt(f),
        }
    }
}

impl From<anyhow::Error> for Failure {
    fn from(error: anyhow::Error) -> Self {
        Self::Failed(format!("{error:#}"))
    }
}

impl From<crate::config::load::Error> for Failure {
    fn from(error: crate::config::load::Error) -> Self {
        Self::Usage(error.to_string())
    }
}

impl From<run::Error> for Failure {
    fn from(error: run::Error) -> Self {
        Self::Run(error)
    }
}
