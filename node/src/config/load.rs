//! From file, environment and flags to a checked [`Config`]; later sources win.
//!
//! A key that does not exist is an error that names the nearest one: a mistyped limit that is silently ignored would be
//! noticed only when it is needed.

use std::path::{Path, PathBuf};

use figment::Figment;
use figment::providers::{Env, Format, Serialized, Toml};
use serde_json::Value;

use super::{Config, Peer};

/// Where a configuration comes from.
#[derive(Debug, Clone, Default)]
pub struct Sources {
    pub file: Option<PathBuf>,
    /// Flags, as `section.key` and a value.
    pub flags: Vec<(String, Value)>,
}

/// Why there is no configuration.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("cannot read the configuration {}: {problem}", path.display())]
    File { path: PathBuf, problem: std::io::Error },
    #[error("{0}")]
    Value(Box<figment::Error>),
    #[error("there is no key {key}{}", suggestion(nearest.as_deref()))]
    UnknownKey { key: String, nearest: Option<String> },
    #[error("the configuration cannot work:\n  {}", .0.join("\n  "))]
    Problems(Vec<String>),
}

fn suggestion(nearest: Option<&str>) -> String {
    nearest.map_or_else(
        || ": drover config show lists all keys".to_owned(),
        |key| format!(": did you mean {key}?"),
    )
}

impl Sources {
    pub fn load(&self) -> Result<Config, Error> {
        let given = self.given()?;
        refuse_unknown_keys(&given)?;
        let config: Config = Figment::from(Serialized::defaults(Config::default()))
            .merge(given)
            .extract()
            .map_err(|error| Error::Value(Box::new(error)))?;
        let problems = config.problems();
        if problems.is_empty() { Ok(config) } else { Err(Error::Problems(problems)) }
    }

    /// What was set, without the defaults.
    fn given(&self) -> Result<Figment, Error> {
        let mut given = Figment::new();
        if let Some(path) = &self.file {
            given = given.merge(Toml::string(&read(path)?));
        }
        given = given.merge(environment());
        for (key, value) in &self.flags {
            given = given.merge(Serialized::default(key, value));
        }
        Ok(given)
    }
}

fn read(path: &Path) -> Result<String, Error> {
    std::fs::read_to_string(path).map_err(|problem| Error::File { path: path.to_owned(), problem })
}

/// `DROVER_SECTION__KEY` and `DROVER_PEERS`. Other `DROVER_` variables are the command line's own (the address and
/// credentials of its client commands).
fn environment() -> Env {
    Env::prefixed("DROVER_")
        .filter(|key| key.as_str().contains("__") || key.as_str().eq_ignore_ascii_case("peers"))
        .split("__")
}

fn refuse_unknown_keys(given: &Figment) -> Result<(), Error> {
    let given: Value = given.extract().map_err(|error| Error::Value(Box::new(error)))?;
    let mut known = plain(&Config::default());
    known["peers"] = Value::Array(vec![plain(&Peer::default())]);
    let paths = paths("", &known);
    match first_unknown("", &given, &known) {
        None => Ok(()),
        Some(key) => Err(Error::UnknownKey { nearest: nearest(&key, &paths), key }),
    }
}

fn plain(value: &impl serde::Serialize) -> Value {
    serde_json::to_value(value).expect("a configuration is plain data")
}

fn join(parent: &str, key: &str) -> String {
    if parent.is_empty() { key.to_owned() } else { format!("{parent}.{key}") }
}

fn first_unknown(parent: &str, given: &Value, known: &Value) -> Option<String> {
    match (given, known) {
        (Value::Object(given), Value::Object(known)) => given.iter().find_map(|(key, value)| {
            let path = join(parent, key);
            match known.get(key) {
                None => Some(path),
                Some(known) => first_unknown(&path, value, known),
            }
        }),
        (Value::Array(given), Value::Array(known)) => {
            let known = known.first()?;
            given.iter().find_map(|value| first_unknown(parent, value, known))
        }
        // Values of the wrong type are reported by the extraction, with the source they came from.
        _ => None,
    }
}

/// All keys below a value.
fn paths(parent: &str, known: &Value) -> Vec<String> {
    match known {
        Value::Object(entries) => {
            entries.iter().flat_map(|(key, value)| paths(&join(parent, key), value)).collect()
        }
        Value::Array(items) if items.iter().any(Value::is_object) => {
            items.iter().flat_map(|item| paths(parent, item)).collect()
        }
        Value::Array(_) | Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {
            vec![parent.to_owned()]
        }
    }
}

/// The known key that a mistyped one is most like: by its whole path, or by its last part under another section.
fn nearest(key: &str, known: &[String]) -> Option<String> {
    let last = |path: &str| path.rsplit('.').next().unwrap_or_default().to_owned();
    let likeness = |path: &String| {
        let whole = strsim::normalized_damerau_levenshtein(key, path);
        whole.max(strsim::normalized_damerau_levenshtein(&last(key), &last(path)) * 0.95)
    };
    known
        .iter()
        .map(|path| (likeness(path), path))
        .filter(|(likeness, _)| *likeness > 0.5)
        .max_by(|(a, _), (b, _)| a.total_cmp(b))
        .map(|(_, path)| path.clone())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn load(toml: &str) -> Result<Config, Error> {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let path = folder.path().join("node.toml");
        std::fs::write(&path, toml).expect("a writable folder");
        Sources { file: Some(path), flags: Vec::new() }.load()
    }

    #[test]
    fn an_empty_file_is_the_defaults() {
        assert_eq!(load("").expect("the defaults are valid"), Config::default());
    }

    #[test]
    fn a_mistyped_key_is_refused_with_the_nearest_one() {
        let error = load("[retention]\nagee = '1day'").expect_err("a mistyped key");
        assert_eq!(
            error.to_string(),
            "there is no key retention.agee: did you mean retention.age?"
        );
        let error = load("[limits]\nheartbeat = '1s'").expect_err("a key of another section");
        assert_eq!(
            error.to_string(),
            "there is no key limits.heartbeat: did you mean raft.heartbeat?"
        );
        let error = load("[[peers]]\nnumber = 1\npeer_adress = 'a:1'").expect_err("a mistyped key");
        assert!(error.to_string().ends_with("did you mean peers.peer_address?"), "{error}");
    }

    #[test]
    fn a_wrong_type_names_the_key() {
        let error = load("[node]\nnumber = 'one'").expect_err("a text for a number");
        assert!(error.to_string().contains("node.number"), "{error}");
        let error = load("[limits]\npacket = 'big'").expect_err("not a size");
        assert!(error.to_string().contains("limits.packet"), "{error}");
    }

    #[test]
    fn values_that_cannot_work_together_are_all_named() {
        let error =
            load("[raft]\nheartbeat = '400ms'\nelection_max = '500ms'").expect_err("bad timing");
        let text = error.to_string();
        assert!(text.contains("raft.election_min") && text.contains("raft.election_max"), "{text}");
    }

    #[test]
    fn a_list_of_peers_must_hold_this_node_once() {
        let others = "[[peers]]\nnumber = 2\npeer_address = 'b:1'\nadmin_address = 'b:2'\n";
        assert!(load(others).expect_err("without this node").to_string().contains("does not list"));
        let twice = format!("{others}{others}");
        assert!(load(&twice).expect_err("a number twice").to_string().contains("another has"));
    }

    #[test]
    fn a_flag_wins_over_the_file() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let path = folder.path().join("node.toml");
        std::fs::write(&path, "[node]\nnumber = 2").expect("a writable folder");
        let flags = vec![("node.number".to_owned(), Value::from(3))];
        let config = Sources { file: Some(path), flags }.load().expect("a valid configuration");
        assert_eq!(config.node.number, 3);
    }
}
