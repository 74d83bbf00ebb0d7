//! Which forwarded headers of trusted proxies are believed.

use crate::config::impl_choice;

/// Which headers of [`trusted_proxies`](crate::ConfigBuilder::trusted_proxies) say who the client of a request is.
///
/// A proxy that sets one kind of header usually passes the other kind on as the client has sent it. Naming the kind that the
/// proxies set makes the other one harmless.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum ForwardedHeaders {
    /// `X-Forwarded-For`, `-Proto` and `-Host`; `Forwarded` of requests without `X-Forwarded-For`.
    #[default]
    Auto,
    /// Only `X-Forwarded-For`, `-Proto` and `-Host`.
    XForwarded,
    /// Only `Forwarded` (RFC 7239).
    Forwarded,
}

impl_choice!(ForwardedHeaders, "a kind of forwarded headers", {
    "auto" => Auto, "x-forwarded" => XForwarded, "forwarded" => Forwarded
});
