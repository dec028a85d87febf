//! A small HTTP/1.1 client for the demo: Consul's API with its token, and a service through a
//! sidecar. One connection a request, nothing pooled, every step under a deadline.

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use http_body_util::{BodyExt as _, Full};
use hyper::body::Bytes;
use hyper::{HeaderMap, Request};
use hyper_util::rt::TokioIo;
use serde_json::Value;
use tokio::net::{TcpStream, lookup_host};

/// Consul on the same machine answers in milliseconds; blocking queries are not made here but by
/// tests, whose waits are shorter.
const CONSUL_TIMEOUT: Duration = Duration::from_secs(10);

/// Why a request got no answer.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// Nobody listens there, or the network is in the way.
    #[error("no connection: {0}")]
    Connect(io::Error),
    /// The connection broke before the answer was complete.
    #[error("{}", broken(.0))]
    Broken(#[from] hyper::Error),
    /// The other side closed it in good order, but too early.
    #[error("connection closed by the sidecar")]
    Closed,
    /// The answer took too long.
    #[error("no answer within {0:?}")]
    Timeout(Duration),
    /// The answer is not what was asked for.
    #[error("answered {status}: {text}")]
    Status {
        /// The HTTP status.
        status: u16,
        /// The start of the body.
        text: String,
    },
    /// The request could not be written down.
    #[error("the address or path is not valid: {0}")]
    Request(String),
}

/// What the application sees of a connection that Attaché cut: the kernel's words where there are
/// any.
fn broken(error: &hyper::Error) -> String {
    let mut source = std::error::Error::source(error);
    while let Some(inner) = source {
        if let Some(io) = inner.downcast_ref::<io::Error>() {
            return match io.kind() {
                io::ErrorKind::ConnectionReset => "connection reset by the sidecar".to_owned(),
                io::ErrorKind::BrokenPipe => "connection closed by the sidecar".to_owned(),
                _ => io.to_string(),
            };
        }
        source = inner.source();
    }
    if error.is_incomplete_message() || error.is_canceled() {
        return "connection closed without an answer".to_owned();
    }
    error.to_string()
}

/// A complete answer.
#[derive(Clone, Debug)]
pub struct Answer {
    /// The HTTP status.
    pub status: u16,
    /// Its headers.
    pub headers: HeaderMap,
    /// Its whole body.
    pub body: Bytes,
}

impl Answer {
    /// The body as JSON, if the status says that it is one.
    ///
    /// # Errors
    /// Any other status, and a body that is no JSON.
    pub fn json(&self) -> Result<Value, ClientError> {
        let value = serde_json::from_slice(&self.body).ok();
        value.filter(|_| self.status == 200).ok_or_else(|| self.refusal())
    }

    /// The answer, if its status is 200.
    ///
    /// # Errors
    /// Any other status.
    pub fn success(self) -> Result<Self, ClientError> {
        if self.status == 200 {
            Ok(self)
        } else {
            Err(self.refusal())
        }
    }

    fn refusal(&self) -> ClientError {
        let text = String::from_utf8_lossy(&self.body);
        ClientError::Status {
            status: self.status,
            text: text.trim().chars().take(200).collect(),
        }
    }
}

/// Consul's HTTP API at one address.
#[derive(Clone, Debug)]
pub struct Consul {
    host: String,
    token: Option<String>,
}

impl Consul {
    /// Takes `HOST:PORT`, also with `http://` before it.
    ///
    /// # Errors
    /// For any other form; HTTPS is not spoken here.
    pub fn new(address: &str, token: Option<String>) -> Result<Self, ClientError> {
        let host = address.strip_prefix("http://").unwrap_or(address);
        let host = host.trim_end_matches('/');
        let wrong = |text: &str| Err(ClientError::Request(format!("{address}: {text}")));
        if host.contains("://") || host.contains('/') {
            return wrong("the demo speaks plain HTTP to HOST:PORT only");
        }
        if host
            .rsplit_once(':')
            .is_none_or(|(_, port)| port.parse::<u16>().is_err())
        {
            return wrong("a port is missing (Consul's is 8500)");
        }
        Ok(Self {
            host: host.to_owned(),
            token,
        })
    }

    /// `HOST:PORT`.
    pub fn host(&self) -> &str {
        &self.host
    }

    /// The token it sends.
    pub fn token(&self) -> Option<&str> {
        self.token.as_deref()
    }

    /// Sends a GET.
    ///
    /// # Errors
    /// When no answer comes; any status is an answer.
    pub async fn get(&self, path: &str) -> Result<Answer, ClientError> {
        self.send("GET", path, &Value::Null).await
    }

    /// Sends a request with a JSON body.
    ///
    /// # Errors
    /// When no answer comes; any status is an answer.
    pub async fn send(&self, method: &str, path: &str, body: &Value) -> Result<Answer, ClientError> {
        let body = if body.is_null() {
            Bytes::new()
        } else {
            Bytes::from(body.to_string())
        };
        let mut request = Request::builder()
            .method(method)
            .uri(path)
            .header("host", &self.host);
        if let Some(token) = &self.token {
            request = request.header("x-consul-token", token);
        }
        let request = request
            .body(Full::new(body))
            .map_err(|error| ClientError::Request(error.to_string()))?;
        let exchange = async {
            let mut addresses = lookup_host(&self.host).await.map_err(ClientError::Connect)?;
            let address = addresses
                .next()
                .ok_or_else(|| ClientError::Request(format!("{}: no such host", self.host)))?;
            exchange(address, request).await
        };
        within(CONSUL_TIMEOUT, exchange).await
    }
}

/// One GET over a connection of its own.
///
/// # Errors
/// When no complete answer comes in time; any status is an answer.
pub async fn fetch(address: SocketAddr, path: &str, limit: Duration) -> Result<Answer, ClientError> {
    let request = get_request(address, path)?;
    within(limit, exchange(address, request)).await
}

pub(super) fn get_request(address: SocketAddr, path: &str) -> Result<Request<Full<Bytes>>, ClientError> {
    Request::get(path)
        .header("host", address.to_string())
        .body(Full::default())
        .map_err(|error| ClientError::Request(error.to_string()))
}

pub(super) async fn within<T>(
    limit: Duration,
    work: impl Future<Output = Result<T, ClientError>>,
) -> Result<T, ClientError> {
    match tokio::time::timeout(limit, work).await {
        Ok(result) => result,
        Err(_) => Err(ClientError::Timeout(limit)),
    }
}

async fn exchange(address: SocketAddr, request: Request<Full<Bytes>>) -> Result<Answer, ClientError> {
    let stream = TcpStream::connect(address).await.map_err(ClientError::Connect)?;
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
    // Driven here rather than in a task: dropping this future closes the socket.
    let mut connection = std::pin::pin!(connection);
    let mut answer = std::pin::pin!(async {
        let response = sender.send_request(request).await?;
        collect(response).await
    });
    let mut over = false;
    loop {
        tokio::select! {
            answer = &mut answer => return answer,
            ended = &mut connection, if !over => {
                over = true;
                ended?;
            }
        }
    }
}

pub(super) async fn collect(response: hyper::Response<hyper::body::Incoming>) -> Result<Answer, ClientError> {
    let (parts, body) = response.into_parts();
    Ok(Answer {
        status: parts.status.as_u16(),
        headers: parts.headers,
        body: body.collect().await?.to_bytes(),
    })
}

#[cfg(test)]
mod tests {
    use super::Consul;

    #[test]
    fn an_address_is_a_host_and_a_port() {
        for right in [
            "127.0.0.1:8500",
            "http://localhost:8500",
            "http://consul.local:80/",
        ] {
            assert!(Consul::new(right, None).is_ok(), "{right}");
        }
        for wrong in [
            "",
            "localhost",
            "https://localhost:8501",
            "localhost:8500/v1",
            "a:b",
        ] {
            assert!(Consul::new(wrong, None).is_err(), "{wrong}");
        }
    }
}
