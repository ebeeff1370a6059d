//! What a node that joined keeps of it: who it is, and what proves it to its peers.
//!
//! ```text
//! identity/peer.key     made before anybody is asked, so that a repeated request is the same node's
//! identity/peer.pem     signed by the cluster's authority
//! identity/peer-ca.pem  whose certificates peers show
//! identity/node         number and generation; written last, so that it is there if everything is
//! ```

use std::fs;
use std::path::{Path, PathBuf};

use drover_proto::admin::JoinResponse;

use super::Error;
use crate::config::Config;
use crate::tls::authority::write_secret;
use crate::tls::pem;

/// The folder of an identity.
#[derive(Debug, Clone)]
pub struct Identity {
    folder: PathBuf,
}

impl Identity {
    pub fn of(config: &Config) -> Self {
        Self { folder: config.node.data.join("identity") }
    }

    fn file(&self, name: &str) -> PathBuf {
        self.folder.join(name)
    }

    /// Whether the node has joined.
    pub fn is_complete(&self) -> bool {
        self.file("node").exists()
    }

    /// The key that was made for it, or a new one.
    pub fn key(&self) -> Result<rcgen::KeyPair, Error> {
        let path = self.file("peer.key");
        if path.exists() {
            let text = fs::read_to_string(&path).map_err(|error| failed(&path, &error))?;
            return rcgen::KeyPair::from_pem(&text).map_err(|error| failed(&path, &error));
        }
        make_folder(&self.folder)?;
        let key = rcgen::KeyPair::generate().map_err(|error| failed(&path, &error))?;
        write_secret(&path, &key.serialize_pem()).map_err(|error| failed(&path, &error))?;
        Ok(key)
    }

    pub fn keep(&self, joined: &JoinResponse) -> Result<(), Error> {
        let authorities: String = joined.authorities.iter().map(|der| pem(der)).collect();
        for (name, text) in [
            ("peer.pem", pem(&joined.certificate)),
            ("peer-ca.pem", authorities),
            ("node", format!("{}.{}\n", joined.number, joined.generation)),
        ] {
            let path = self.file(name);
            write_secret(&path, &text).map_err(|error| failed(&path, &error))?;
        }
        Ok(())
    }

    /// The configuration of the node that it became.
    pub fn apply(&self, mut config: Config) -> Result<Config, Error> {
        let path = self.file("node");
        let text = fs::read_to_string(&path).map_err(|error| failed(&path, &error))?;
        let parsed = text.trim().split_once('.').and_then(|(number, generation)| {
            Some((number.parse().ok()?, generation.parse().ok()?))
        });
        let (number, generation) =
            parsed.ok_or_else(|| failed(&path, &"it does not hold NUMBER.GENERATION"))?;
        (config.node.number, config.node.generation) = (number, generation);
        config.tls.peer_certificate = self.file("peer.pem");
        config.tls.peer_key = self.file("peer.key");
        config.tls.peer_ca = self.file("peer-ca.pem");
        // Who the members are is known from the meta state; a list in the configuration would be an older truth.
        config.peers.clear();
        Ok(config)
    }
}

fn make_folder(folder: &Path) -> Result<(), Error> {
    use std::os::unix::fs::DirBuilderExt as _;
    let made = fs::DirBuilder::new().recursive(true).mode(0o700).create(folder);
    made.map_err(|error| failed(folder, &error))
}

fn failed(path: &Path, problem: &impl ToString) -> Error {
    Error::File { path: path.display().to_string(), problem: problem.to_string() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_is_who_it_became_and_keeps_its_key() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let mut config = Config::default();
        config.node.data = folder.path().join("data");
        let identity = Identity::of(&config);
        assert!(!identity.is_complete());
        let key = identity.key().expect("a key");
        assert_eq!(identity.key().expect("the same").serialize_der(), key.serialize_der());
        let joined = JoinResponse {
            number: 4,
            generation: 2,
            certificate: vec![1; 100],
            authorities: vec![vec![2; 10], vec![3; 10]],
            ..JoinResponse::default()
        };
        identity.keep(&joined).expect("a writable folder");
        assert!(identity.is_complete());
        let config = identity.apply(config).expect("it is complete");
        assert_eq!((config.node.number, config.node.generation), (4, 2));
        let text = fs::read_to_string(&config.tls.peer_ca).expect("a file");
        assert_eq!(text.matches("BEGIN CERTIFICATE").count(), 2);
    }
}
