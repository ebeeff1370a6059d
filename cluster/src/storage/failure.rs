//! The first failure of a store, after which it answers nothing more.
//!
//! A failed fsync leaves pages marked clean that never reached the disk: a second one would succeed and lie. So nothing
//! is retried on the same handle.

use std::sync::{Arc, OnceLock};

use tracing::error;

use super::Error;
use crate::metrics;

/// Shared by everything that works on one store.
#[derive(Debug, Clone, Default)]
pub(super) struct Failure(Arc<OnceLock<Error>>);

impl Failure {
    /// Refuses if the store has failed.
    pub(super) fn check(&self) -> Result<(), Error> {
        match self.0.get() {
            Some(error) => Err(error.clone()),
            None => Ok(()),
        }
    }

    /// Notes a failure and gives it back. Later ones are consequences of the first.
    pub(super) fn note(&self, failed: Error) -> Error {
        if self.0.set(failed.clone()).is_ok() {
            metrics::storage_failed();
            error!(error = %failed, "the store failed and answers nothing more: restart the node");
        }
        failed
    }
}
