//! A configuration as a TOML file with a comment at each key: what `drover config show` prints and `drover dev` writes.

use std::fmt::Write;

use serde_json::{Map, Value};

use super::{Config, keys};

/// The whole configuration, each key with its meaning. Reading it back gives the same configuration.
pub fn to_toml(config: &Config) -> String {
    let value = serde_json::to_value(config).expect("a configuration is plain data");
    let mut text = String::new();
    let mut section = "";
    for (path, meaning) in keys::KEYS {
        let Some((own_section, key)) = path.split_once('.') else { continue };
        if own_section != section {
            section = own_section;
            line(&mut text, &format!("\n[{section}]"));
        }
        line(&mut text, &format!("# {meaning}\n{key} = {}", literal(&value[section][key])));
    }
    let meaning = keys::meaning("peers").unwrap_or_default();
    line(&mut text, &format!("\n# {meaning}"));
    for peer in value["peers"].as_array().into_iter().flatten().filter_map(Value::as_object) {
        line(&mut text, &table("peers", peer));
    }
    text
}

fn table(name: &str, entries: &Map<String, Value>) -> String {
    let mut text = format!("[[{name}]]\n");
    for (key, value) in entries {
        line(&mut text, &format!("{key} = {}", literal(value)));
    }
    text
}

/// JSON's strings, numbers, booleans and lists of them are TOML's too.
fn literal(value: &Value) -> String {
    value.to_string()
}

fn line(text: &mut String, line: &str) {
    writeln!(text, "{line}").expect("a string takes what it is given");
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Peer, Sources};

    #[test]
    fn what_is_shown_reads_back_as_the_same() {
        let mut config = Config::default();
        config.node.host_names = vec!["hub.example".to_owned(), "quote\"d".to_owned()];
        config.peers = vec![Peer {
            number: 1,
            peer_address: "a:7070".to_owned(),
            admin_address: "a:7443".to_owned(),
            ..Peer::default()
        }];
        let folder = tempfile::tempdir().expect("a temporary folder");
        let path = folder.path().join("node.toml");
        std::fs::write(&path, to_toml(&config)).expect("a writable folder");
        let read = Sources { file: Some(path), flags: Vec::new() }.load();
        assert_eq!(read.expect("what was shown is valid"), config);
    }
}
