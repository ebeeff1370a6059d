//! How a command fails: a message for people, an exit code for scripts and supervisors.

use std::fmt;

use tonic::{Code, Status};

use super::output::printable;
use crate::run;

/// Why a command did not do what was asked.
#[derive(Debug)]
pub(super) enum Failure {
    /// Anything that the message explains.
    Failed(String),
    /// The arguments or the configuration are wrong: the same command fails again until they are changed.
    Usage(String),
    /// The hub stopped by itself, or never started.
    Run(run::Error),
    /// The hub refused a call, or could not be reached.
    Call(Box<Status>),
    /// What was printed is not wanted any more. It ends a command early and is no failure to its caller.
    NobodyReads,
}

impl Failure {
    /// 1 and 2 as everywhere; 3 to 7 what a script that asks a hub should tell apart; from 10 on what a supervisor of
    /// nodes should.
    pub(super) fn code(&self) -> u8 {
        match self {
            Self::NobodyReads => 0,
            Self::Call(status) => match status.code() {
                Code::NotFound => 3,
                // Nothing was changed: the same command can succeed later.
                Code::Unavailable | Code::ResourceExhausted => 4,
                Code::Unauthenticated | Code::PermissionDenied => 5,
                // It is not as the command expected: read again.
                Code::Aborted | Code::AlreadyExists | Code::FailedPrecondition => 6,
                // It may have happened or not.
                Code::DeadlineExceeded | Code::Unknown | Code::Cancelled => 7,
                Code::Ok
                | Code::InvalidArgument
                | Code::OutOfRange
                | Code::Unimplemented
                | Code::Internal
                | Code::DataLoss => 1,
            },
            Self::Failed(_) | Self::Run(run::Error::Failed(_)) => 1,
            Self::Usage(_) => 2,
            Self::Run(run::Error::Listen { .. }) => 10,
            Self::Run(run::Error::Storage(_)) => 11,
            Self::Run(run::Error::Outdated(_)) => 12,
        }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Failed(message) | Self::Usage(message) => f.write_str(message),
            Self::Run(error) => error.fmt(f),
            Self::NobodyReads => f.write_str("nobody reads the output"),
            Self::Call(status) => {
                f.write_str(&printable(status.message()))?;
                f.write_str(hint(status))
            }
        }
    }
}

/// What the hub's own text does not say, because it was the client that found out.
fn hint(status: &Status) -> &'static str {
    let by_the_hub = !status.details().is_empty();
    if by_the_hub {
        ""
    } else if status.code() == Code::Unavailable {
        ": the hub cannot be reached; is it running, and are --endpoint and --ca right?"
    } else if matches!(status.code(), Code::DeadlineExceeded | Code::Cancelled) {
        ": no answer within --timeout; the outcome is unknown, read before you repeat"
    } else {
        ""
    }
}

impl From<Status> for Failure {
    fn from(status: Status) -> Self {
        Self::Call(Box::new(status))
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

impl From<crate::join::Error> for Failure {
    fn from(error: crate::join::Error) -> Self {
        use crate::join::Error;
        let text = error.to_string();
        match error {
            Error::Token { .. } | Error::NotEmpty { .. } | Error::NoAddress { .. } => {
                Self::Usage(text)
            }
            Error::File { .. } | Error::Unreachable(_) | Error::Refused(_) | Error::Answer(_) => {
                Self::Failed(text)
            }
        }
    }
}

impl From<run::Error> for Failure {
    fn from(error: run::Error) -> Self {
        Self::Run(error)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scripts_can_tell_what_went_wrong_by_the_exit_code() {
        let code = |code| Failure::from(Status::new(code, "")).code();
        assert_eq!(code(Code::NotFound), 3);
        assert_eq!(code(Code::Unavailable), 4);
        assert_eq!(code(Code::Unauthenticated), 5);
        assert_eq!(code(Code::Aborted), 6);
        assert_eq!(code(Code::DeadlineExceeded), 7);
        assert_eq!(code(Code::InvalidArgument), 1);
        assert_eq!(Failure::Usage(String::new()).code(), 2);
    }

    #[test]
    fn what_a_hub_says_cannot_act_on_the_terminal() {
        let failure = Failure::from(Status::not_found("there is no \u{1b}[2J"));
        assert_eq!(failure.to_string(), "there is no \\u{1b}[2J");
    }

    #[test]
    fn a_hub_that_cannot_be_reached_is_said_to_be_so() {
        let failure = Failure::from(Status::unavailable("tcp connect error"));
        assert!(failure.to_string().contains("is it running"), "{failure}");
    }
}
