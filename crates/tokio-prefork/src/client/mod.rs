//! Who a connection and a request come from: addresses, the PROXY protocol, and the headers of trusted proxies.

mod client_addr;
mod client_certificate;
mod client_info;
#[cfg(feature = "axum")]
pub(crate) mod connect_info;
mod connection_info;
mod forwarded;
mod forwarded_headers;
mod listener_names;
mod peer_addr;
mod proxy_protocol;
mod request_id;
mod tls_info;
mod trace_context;
mod trusted_proxies;

pub use client_addr::ClientAddr;
pub use client_certificate::ClientCertificate;
pub use client_info::ClientInfo;
pub use connection_info::ConnectionInfo;
pub(crate) use connection_info::ExpectedProxyHeader;
pub use forwarded_headers::ForwardedHeaders;
pub(crate) use listener_names::{ListenerName, ListenerNames};
pub use peer_addr::{PeerAddr, UnixPeer};
pub(crate) use proxy_protocol::{
    HeaderProgress, ProxiedClient, is_proxy_header, parse_proxy_header,
};
pub use proxy_protocol::{ProxyHeader, ProxyProtocol};
pub use request_id::RequestId;
pub(crate) use request_id::{RequestIds, X_REQUEST_ID};
#[cfg(feature = "tls")]
pub(crate) use tls_info::TlsFacts;
pub use tls_info::TlsInfo;
pub(crate) use trace_context::TraceParent;
pub use trace_context::{ParentId, TraceContext, TraceId};
pub use trusted_proxies::TrustedProxies;
