//! What `drover dev` says when a device can connect: where everything is, and lines to paste.

use std::fmt::Write as _;
use std::io::Write as _;

use anyhow::{Context, Result};

use super::first_device::DEVICE;
use super::layout::Layout;
use crate::identity::connection_string::ConnectionString;

pub(super) fn print(layout: &Layout, device: &ConnectionString) -> Result<()> {
    let mut text = String::from("\nDrover is ready.\n\n");
    for node in &layout.nodes {
        let ports = node.ports;
        line(
            &mut text,
            &format!(
                "  node {}   MQTT/TLS localhost:{}   MQTT localhost:{}   WebSocket localhost:{}   gRPC localhost:{}   metrics \
                 http://localhost:{}/metrics",
                node.number, ports.mqtts, ports.mqtt, ports.https, ports.grpc, ports.http
            ),
        );
    }
    let ca = layout.ca().display().to_string();
    line(&mut text, &format!("  data     {}", layout.folder.display()));
    line(&mut text, &format!("  CA       {ca}"));
    line(&mut text, &format!("  device   {device}"));
    line(&mut text, &commands(layout, &ca));
    let mut output = std::io::stdout();
    output.write_all(text.as_bytes()).and_then(|()| output.flush()).context("cannot print")
}

fn commands(layout: &Layout, ca: &str) -> String {
    let program = quoted(&program());
    let folder = quoted(&layout.folder.display().to_string());
    let ca = quoted(ca);
    let port = layout.nodes.first().map_or(8883, |node| node.ports.mqtts);
    format!(
        "
Paste into another terminal:

  export DROVER_PROFILE={folder}
  {program} messages tail
  {program} twins get {DEVICE}
  mosquitto_pub -h localhost -p {port} --cafile {ca} -i {DEVICE} \\
    -u 'localhost/{DEVICE}/?api-version=2021-04-12' -P \"$({program} devices sas-token {DEVICE})\" \\
    -t 'devices/{DEVICE}/messages/events/' -q 1 -m '{{\"temperature\":21.5}}'

Stop with Ctrl-C; the data stays."
    )
}

/// How this program was called, so that the lines work whether it is installed or not.
fn program() -> String {
    let exe = std::env::current_exe().ok();
    exe.map_or_else(|| "drover".to_owned(), |path| path.display().to_string())
}

/// As a shell takes it; a path that needs no quotes stays readable.
fn quoted(path: &str) -> String {
    let is_plain = |c: char| c.is_ascii_alphanumeric() || "/._-+".contains(c);
    if path.chars().all(is_plain) {
        return path.to_owned();
    }
    format!("'{}'", path.replace('\'', r"'\''"))
}

fn line(text: &mut String, line: &str) {
    writeln!(text, "{line}").expect("a string takes what it is given");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_is_one_word_to_a_shell() {
        assert_eq!(quoted("/srv/drover-dev"), "/srv/drover-dev");
        assert_eq!(quoted("/srv/my hub"), "'/srv/my hub'");
        assert_eq!(quoted("/srv/o'hare"), r"'/srv/o'\''hare'");
    }
}
