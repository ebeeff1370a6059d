//! What commands read from files and standard input, within limits.

use std::fs::File;
use std::io::Read;

use super::Failure;

/// More is a mistake: a hundred thousand devices with twins fit.
const BYTES_MAX: u64 = 256 << 20;

/// The text of a file; `-` is standard input.
pub(crate) fn read_text(path: &str) -> Result<String, Failure> {
    let failed = |error: std::io::Error| Failure::Usage(format!("cannot read {path}: {error}"));
    let source: Box<dyn Read> = match path {
        "-" => Box::new(std::io::stdin()),
        path => Box::new(File::open(path).map_err(failed)?),
    };
    let mut text = String::new();
    source.take(BYTES_MAX + 1).read_to_string(&mut text).map_err(failed)?;
    if text.len() as u64 > BYTES_MAX {
        return Err(Failure::Usage(format!("{path} is larger than {BYTES_MAX} bytes: split it")));
    }
    Ok(text)
}
