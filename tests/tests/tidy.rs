//! What no compiler checks: layers point one way, files say why they exist, metrics are named once and used, nothing knows
//! whose machine this is.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use drover_tests::programs::checkout;

/// The layers inside `drover-cluster`, the lowest first.
const CLUSTER_LAYERS: [&str; 4] = ["wire", "storage", "raft", "actors"];
/// Modules of `drover-node` that speak to the outside.
const PROTOCOLS: [&str; 3] = ["mqtt", "http", "grpc"];
/// What a package may name of the others.
const PACKAGES: [(&str, &[&str]); 4] = [
    ("proto", &[]),
    ("cluster/core", &[]),
    ("cluster/src", &["drover_core", "drover_proto"]),
    ("node", &["drover_core", "drover_proto", "drover_cluster", "drover_node"]),
];
/// Everything that a package could name.
const NAMES: [&str; 6] = [
    "drover_core",
    "drover_proto",
    "drover_cluster",
    "drover_node",
    "drover_chaos",
    "drover_tests",
];
/// What carries clocks, chance, sockets or disks into a core that must have none.
const NOT_IN_CORE: [&str; 8] =
    ["tokio", "ractor", "openraft", "rocksdb", "prost", "rand", "std::time", "std::net"];

/// All source files below a folder, in a fixed order.
fn files(folder: &Path, endings: &[&str]) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut folders = vec![folder.to_owned()];
    while let Some(folder) = folders.pop() {
        let entries =
            fs::read_dir(&folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display()));
        for entry in entries {
            let path = entry.expect("a readable entry").path();
            let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            if path.is_dir() {
                if !name.starts_with('.') && name != "target" {
                    folders.push(path);
                }
            } else if endings.iter().any(|ending| name.ends_with(ending)) {
                found.push(path);
            }
        }
    }
    found.sort();
    found
}

fn text(path: &Path) -> String {
    fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

fn shown(path: &Path) -> String {
    path.strip_prefix(checkout()).unwrap_or(path).display().to_string()
}

/// The source without comments and without the tests at its end, which may reach anywhere.
fn product_code(source: &str) -> String {
    let product = source.split("#[cfg(test)]\nmod ").next().unwrap_or_default();
    let is_code = |line: &&str| !line.trim_start().starts_with("//");
    product.lines().filter(is_code).collect::<Vec<_>>().join("\n")
}

/// Whether code names a path such as `drover_core` or `crate::raft`, and not merely a longer word.
fn names(code: &str, path: &str) -> bool {
    mentions(code, path) > 0
}

fn mentions(code: &str, path: &str) -> usize {
    let is_word = |character: char| character.is_alphanumeric() || character == '_';
    let is_whole = |start: usize| {
        let before = code[..start].chars().next_back();
        let after = code[start + path.len()..].chars().next();
        !before.is_some_and(is_word) && !after.is_some_and(is_word)
    };
    code.match_indices(path).filter(|(start, _)| is_whole(*start)).count()
}

/// Lines `FILE names PATH` for each path that a file below `folder` must not name.
fn namings(folder: &Path, forbidden: &[String]) -> Vec<String> {
    let breaches = files(folder, &[".rs"]).into_iter().flat_map(|file| {
        let code = product_code(&text(&file));
        let named = forbidden.iter().filter(move |path| names(&code, path));
        named.map(move |path| format!("{} names {path}", shown(&file))).collect::<Vec<_>>()
    });
    breaches.collect()
}

/// Shows all breaches of a rule together.
fn assert_none(rule: &str, breaches: &[String]) {
    assert!(breaches.is_empty(), "{rule}:\n  {}", breaches.join("\n  "));
}

#[test]
fn packages_name_only_packages_below_them() {
    let breaches = PACKAGES.iter().flat_map(|(package, allowed)| {
        let forbidden = NAMES.iter().filter(|name| !allowed.contains(name));
        let forbidden: Vec<_> = forbidden.map(|name| (*name).to_owned()).collect();
        namings(&checkout().join(package), &forbidden)
    });
    assert_none("a package names one that is not below it", &breaches.collect::<Vec<_>>());
}

#[test]
fn layers_of_the_cluster_name_only_layers_below_them() {
    let breaches = CLUSTER_LAYERS.iter().enumerate().flat_map(|(height, layer)| {
        let above = CLUSTER_LAYERS[height + 1..].iter().map(|above| format!("crate::{above}"));
        namings(&checkout().join("cluster/src").join(layer), &above.collect::<Vec<_>>())
    });
    assert_none("a layer names one above it", &breaches.collect::<Vec<_>>());
}

#[test]
fn the_core_knows_no_clock_no_chance_no_socket_and_no_disk() {
    let forbidden: Vec<_> = NOT_IN_CORE.iter().map(|name| (*name).to_owned()).collect();
    let breaches = namings(&checkout().join("cluster/core/src"), &forbidden);
    assert_none("the core names what it must not know", &breaches);
}

#[test]
fn protocols_know_no_storage_no_raft_and_not_each_other() {
    let breaches = PROTOCOLS.iter().flat_map(|protocol| {
        let others = PROTOCOLS.iter().filter(|other| *other != protocol);
        let mut forbidden: Vec<_> = others.map(|other| format!("crate::{other}")).collect();
        let below = ["rocksdb", "openraft", "drover_cluster::storage", "drover_cluster::raft"];
        forbidden.extend(below.map(str::to_owned));
        namings(&checkout().join("node/src").join(protocol), &forbidden)
    });
    assert_none("a protocol names what it must not know", &breaches.collect::<Vec<_>>());
}

#[test]
fn nothing_in_the_product_plants_a_mistake() {
    let where_it_is_defined = checkout().join("cluster/core/src/mutants.rs");
    assert!(
        names(&text(&where_it_is_defined), "plant"),
        "does this test still look for the right word?"
    );
    let breaches = ["cluster", "node", "proto"].into_iter().flat_map(|package| {
        let breaches = namings(&checkout().join(package), &["plant".to_owned()]);
        breaches.into_iter().filter(|breach| !breach.starts_with(&shown(&where_it_is_defined)))
    });
    assert_none("only the simulation plants mistakes", &breaches.collect::<Vec<_>>());
}

#[test]
fn nothing_in_the_product_pretends_to_be_an_older_build() {
    let where_it_is_defined = checkout().join("cluster/core/src/level.rs");
    assert!(
        names(&text(&where_it_is_defined), "pretend"),
        "does this test look for the right word?"
    );
    let breaches = ["cluster", "node", "proto"].into_iter().flat_map(|package| {
        let breaches = namings(&checkout().join(package), &["pretend".to_owned()]);
        breaches.into_iter().filter(|breach| !breach.starts_with(&shown(&where_it_is_defined)))
    });
    assert_none("only programs of tests pretend", &breaches.collect::<Vec<_>>());
}

#[test]
fn every_source_file_says_why_it_exists() {
    let all = files(&checkout(), &[".rs"]);
    let silent = all.iter().filter(|file| !text(file).starts_with("//! "));
    assert_none("a file has no header", &silent.map(|file| shown(file)).collect::<Vec<_>>());
}

/// A metric: the constant, its name, the file that declares it.
struct Metric {
    constant: String,
    name: String,
    file: String,
}

/// Every `const NAME: &str = "drover_…"` in a `metrics.rs`.
fn metrics() -> Vec<Metric> {
    let mut found = Vec::new();
    for file in files(&checkout(), &["metrics.rs"]) {
        let source = text(&file).split_whitespace().collect::<Vec<_>>().join(" ");
        let declarations = source.split("const ").skip(1);
        found.extend(declarations.filter_map(|declaration| {
            let (constant, value) = declaration.split_once(": &str = \"")?;
            let name = value.split('"').next()?.to_owned();
            Some(Metric { constant: constant.to_owned(), name, file: shown(&file) })
        }));
    }
    assert!(!found.is_empty(), "no metric was found: does this test still read the right files?");
    found
}

#[test]
fn metric_names_are_unique_well_formed_and_used() {
    let sources = files(&checkout(), &[".rs"]);
    let mut declared: BTreeMap<String, String> = BTreeMap::new();
    let mut breaches = Vec::new();
    for Metric { constant, name, file } in metrics() {
        let is_plain =
            |character: char| character.is_ascii_lowercase() || "_0123456789".contains(character);
        if !name.starts_with("drover_") || !name.chars().all(is_plain) {
            breaches.push(format!("{name} in {file} is not drover_<room>_<what>_<unit>"));
        }
        let package = file.split("src/").next().unwrap_or_default().to_owned();
        let in_package = sources.iter().filter(|source| shown(source).starts_with(&package));
        let mentions: usize = in_package.map(|source| mentions(&text(source), &constant)).sum();
        // It is declared and it is described: a third time, it is recorded.
        if mentions < 3 {
            breaches.push(format!("{constant} of {file} is recorded nowhere"));
        }
        if let Some(other) = declared.insert(name.clone(), file.clone()) {
            breaches.push(format!("{name} is in {other} and in {file}"));
        }
    }
    assert_none("a metric breaks a rule", &breaches);
}

#[test]
fn the_operators_page_names_every_key_and_every_metric() {
    let page = text(&checkout().join("docs/operations.md"));
    let source = text(&checkout().join("node/src/config/keys.rs"));
    let table = source.split("#[cfg(test)]").next().unwrap_or_default();
    let words = table.split('"').skip(1).step_by(2);
    let keys = words.filter(|word| word.contains('.') && !word.contains(' ')).map(str::to_owned);
    let keys: Vec<_> = keys.collect();
    assert!(keys.len() > 30, "keys were not found: does this test still read the right file?");
    let wanted = keys.into_iter().chain(metrics().into_iter().map(|metric| metric.name));
    let missing = wanted.filter(|name| !page.contains(&format!("`{name}`")));
    assert_none("docs/operations.md does not explain", &missing.collect::<Vec<_>>());
}

#[test]
fn the_page_about_testing_names_tests_that_exist() {
    let page = text(&checkout().join("docs/testing.md"));
    let words = page.split('`').skip(1).step_by(2).filter_map(|word| word.rsplit("::").next());
    // Tests' names are claims: three words at least.
    let is_name = |word: &&str| {
        word.matches('_').count() >= 2
            && word.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_')
    };
    let names: Vec<_> = words.filter(is_name).collect();
    assert!(names.len() > 100, "tests were not found: does this test still read the right page?");
    let sources: String = files(&checkout(), &[".rs"]).iter().map(|file| text(file)).collect();
    let missing = names.into_iter().filter(|name| !sources.contains(&format!("fn {name}(")));
    assert_none("there is no such test", &missing.map(str::to_owned).collect::<Vec<_>>());
}

#[test]
fn nothing_knows_whose_machine_this_is() {
    // Put together here, so that this file does not break its own rule.
    let homes = ["work", "root", "home"].map(|folder| format!("/{folder}/"));
    let begins_a_path = |line: &str, home: &String| {
        line.match_indices(home.as_str()).any(|(start, _)| {
            let before = line[..start].chars().next_back();
            !before
                .is_some_and(|character| character.is_alphanumeric() || "._-})".contains(character))
        })
    };
    let mut breaches = Vec::new();
    for file in files(&checkout(), &[".rs", ".md", ".toml", ".proto", ".py", "Makefile"]) {
        for (number, line) in text(&file).lines().enumerate() {
            if homes.iter().any(|home| begins_a_path(line, home)) {
                breaches.push(format!("{}:{}: {}", shown(&file), number + 1, line.trim()));
            }
        }
    }
    assert_none("a line names a folder of one machine", &breaches);
}
