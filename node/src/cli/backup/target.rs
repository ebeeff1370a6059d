//! Where a backup is: a folder, or a bucket of S3, Azure Blob Storage or Google Cloud Storage.
//!
//! An object appears whole or not at all, and in a folder it is fsynced before it is called written. Credentials and endpoints come
//! from the environment under the names that the vendors' own tools use.

use bytes::Bytes;
use futures::StreamExt as _;
use object_store::local::LocalFileSystem;
use object_store::path::Path;
use object_store::{ObjectStore, ObjectStoreExt as _, ObjectStoreScheme, parse_url_opts};
use url::Url;

use crate::cli::Failure;

/// Which variables of the environment are meant for a bucket. Others have names that are none of ours to interpret.
const PREFIXES: [&str; 3] = ["AWS_", "AZURE_", "GOOGLE_"];

/// A place for objects.
#[derive(Debug)]
pub(super) struct Target {
    store: Box<dyn ObjectStore>,
    folder: Path,
    /// For people: without what may be secret in it.
    name: String,
}

impl Target {
    /// `place`: a URL, or a path of this machine.
    pub(super) fn open(place: &str) -> Result<Self, Failure> {
        let environment = std::env::vars_os()
            .filter_map(|(key, value)| Some((key.into_string().ok()?, value.into_string().ok()?)));
        Self::open_with(place, environment)
    }

    fn open_with(
        place: &str,
        environment: impl Iterator<Item = (String, String)>,
    ) -> Result<Self, Failure> {
        let unusable = |problem: &dyn std::fmt::Display| {
            Failure::Usage(format!(
                "{:?} is no place for a backup: {problem}; use a folder, file:///folder, s3://bucket/folder, \
                 az://container/folder or gs://bucket/folder",
                place.split('?').next().unwrap_or_default()
            ))
        };
        let url = if place.contains(':') {
            Url::parse(place).map_err(|error| unusable(&error))?
        } else {
            let folder = std::path::absolute(place).map_err(|error| unusable(&error))?;
            Url::from_directory_path(folder).map_err(|()| unusable(&"it is no path"))?
        };
        // Its own words would show the whole URL, and there may be a secret in it.
        let (scheme, folder) = ObjectStoreScheme::parse(&url)
            .map_err(|_| unusable(&"that is no kind of place that is known here"))?;
        let store: Box<dyn ObjectStore> = if scheme == ObjectStoreScheme::Local {
            Box::new(LocalFileSystem::new().with_fsync(true))
        } else {
            // The client of buckets asks the process for its cryptography; installed already is as good.
            rustls::crypto::ring::default_provider().install_default().ok();
            let is_meant =
                |(key, _): &(String, String)| PREFIXES.iter().any(|prefix| key.starts_with(prefix));
            parse_url_opts(&url, environment.filter(is_meant)).map_err(|error| unusable(&error))?.0
        };
        let name = place.split('?').next().unwrap_or_default().to_owned();
        Ok(Self { store, folder, name })
    }

    /// Whether there is no object at all.
    pub(super) async fn is_empty(&self) -> Result<bool, Failure> {
        let found = self.store.list(Some(&self.folder)).next().await.transpose();
        let found = found.map_err(|error| self.failed("looked at", &error))?;
        Ok(found.is_none())
    }

    pub(super) async fn put(&self, name: &str, bytes: Vec<u8>) -> Result<(), Failure> {
        let put = self.store.put(&self.path(name), bytes.into()).await;
        let what = format!("given {name}");
        put.map(drop).map_err(|error| self.failed(&what, &error))
    }

    /// An object, if there is one. One that is larger than it may be is a failure.
    pub(super) async fn get(&self, name: &str, bytes_max: u64) -> Result<Option<Bytes>, Failure> {
        let failed = |error| self.failed(&format!("asked for {name}"), &error);
        let found = match self.store.get(&self.path(name)).await {
            Err(object_store::Error::NotFound { .. }) => return Ok(None),
            found => found.map_err(failed)?,
        };
        if found.meta.size > bytes_max {
            return Err(self.broken(&format!(
                "{name} has {} bytes, and {bytes_max} are the most that it may have",
                found.meta.size
            )));
        }
        found.bytes().await.map(Some).map_err(failed)
    }

    /// The failure of whoever found out that the backup is not what it should be.
    pub(super) fn broken(&self, problem: &str) -> Failure {
        Failure::Failed(format!("the backup at {} is not to be trusted: {problem}", self.name))
    }

    pub(super) fn name(&self) -> &str {
        &self.name
    }

    fn path(&self, name: &str) -> Path {
        name.split('/').fold(self.folder.clone(), Path::join)
    }

    fn failed(&self, what: &str, error: &object_store::Error) -> Failure {
        Failure::Failed(format!("{} cannot be {what}: {error}", self.name))
    }
}

#[cfg(test)]
mod tests;
