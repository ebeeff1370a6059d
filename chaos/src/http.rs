//! Pages that nodes serve without a login: metrics and health.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context as _, bail};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::time::timeout;

const ANSWER_TIMEOUT: Duration = Duration::from_secs(20);

/// A page; an error if the status is not 200.
pub async fn get(address: SocketAddr, path: &str) -> anyhow::Result<String> {
    let exchange = async {
        let mut stream = TcpStream::connect(address).await?;
        let request =
            format!("GET {path} HTTP/1.1\r\nhost: {address}\r\nconnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await?;
        let mut response = String::new();
        stream.read_to_string(&mut response).await?;
        anyhow::Ok(response)
    };
    let response = timeout(ANSWER_TIMEOUT, exchange).await.context("no answer")??;
    let (head, body) = response.split_once("\r\n\r\n").context("not HTTP")?;
    if !head.starts_with("HTTP/1.1 200") {
        bail!("{} {body}", head.lines().next().unwrap_or_default());
    }
    Ok(body.to_owned())
}

/// The value of a metric without labels on a page of metrics. `None`: it has counted nothing yet.
pub fn metric(page: &str, name: &str) -> Option<f64> {
    let line = page.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
    line?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_metric_is_found_by_its_whole_name() {
        let page = "# TYPE sent counter\nsent_total 3\nsent 2.5\nsent{to=\"a\"} 1\n";
        assert_eq!(metric(page, "sent"), Some(2.5));
        assert_eq!(metric(page, "sent_total"), Some(3.0));
        assert_eq!(metric(page, "se"), None);
    }
}
