//! Accepts both kinds of HTTP service: those of hyper and those of tower.

use bytes::Bytes;
use hyper::body::{Body, Incoming};
use hyper::service::Service;
use hyper::{Request, Response};
use hyper_util::service::TowerToHyperService;

use crate::error::BoxError;

/// A service that answers HTTP requests: what the boot closure of [`Cluster::serve`](crate::Cluster::serve) returns.
///
/// Implemented for every
///
/// - [`hyper::service::Service<Request<Incoming>>`](hyper::service::Service), such as `hyper::service::service_fn(..)`.
///   The worker calls one service for all connections. Neither it nor its futures need to be `Send`.
/// - tower `Service<Request<Incoming>> + Clone`, such as axum's `Router`, tonic's `Routes` and either of them inside the
///   layers of tower and tower-http. It is cloned for each request, as tower's services are called by `&mut self`.
///
/// The response is a [`Response<B>`](hyper::Response) with any body of bytes whose error converts to a [`BoxError`]. If the
/// service returns an error, its connection is closed.
///
/// `M` only tells the two apart. The compiler infers it; for a type that is a service of both kinds, name it:
/// `IntoHttpService::<ViaTower>::into_http_service(service)`.
#[diagnostic::on_unimplemented(
    message = "`{Self}` is not an HTTP service",
    label = "the boot closure returns this, but it serves no `hyper::Request<hyper::body::Incoming>`",
    note = "return `Ok(router)` with an axum `Router`, or another tower service of `Request<Incoming>` that is `Clone`, or \
            `Ok(hyper::service::service_fn(|request: Request<Incoming>| async move {{ .. }}))`",
    note = "a `Router<S>` needs its state first: `router.with_state(state)`; `into_make_service()` is not needed",
    note = "the body of the response must be an `http_body::Body<Data = bytes::Bytes>`, and errors must convert to \
            `Box<dyn std::error::Error + Send + Sync>`"
)]
pub trait IntoHttpService<M>: 'static {
    /// The body of the responses.
    type Body: Body<Data = Bytes, Error: Into<BoxError>> + 'static;

    /// The service of hyper that the worker calls.
    type Service: Service<
            Request<Incoming>,
            Response = Response<Self::Body>,
            Error: Into<BoxError> + 'static,
            Future: 'static,
        > + 'static;

    /// Converts into the service of hyper that the worker calls.
    fn into_http_service(self) -> Self::Service;
}

/// Marks the services of hyper in [`IntoHttpService`].
#[derive(Debug)]
pub enum ViaHyper {}

/// Marks the services of tower in [`IntoHttpService`].
#[derive(Debug)]
pub enum ViaTower {}

impl<S, B> IntoHttpService<ViaHyper> for S
where
    S: Service<
            Request<Incoming>,
            Response = Response<B>,
            Error: Into<BoxError> + 'static,
            Future: 'static,
        > + 'static,
    B: Body<Data = Bytes, Error: Into<BoxError>> + 'static,
{
    type Body = B;
    type Service = S;

    fn into_http_service(self) -> S {
        self
    }
}

impl<S, B> IntoHttpService<ViaTower> for S
where
    S: tower_service::Service<
            Request<Incoming>,
            Response = Response<B>,
            Error: Into<BoxError> + 'static,
            Future: 'static,
        > + Clone
        + 'static,
    B: Body<Data = Bytes, Error: Into<BoxError>> + 'static,
{
    type Body = B;
    type Service = TowerToHyperService<S>;

    fn into_http_service(self) -> TowerToHyperService<S> {
        TowerToHyperService::new(self)
    }
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;
    use std::future::{Ready, ready};
    use std::rc::Rc;
    use std::task::{Context, Poll};

    use hyper::service::service_fn;

    use super::*;

    /// A service of tower that is not `Send`.
    #[derive(Clone)]
    struct TowerText(Rc<str>);

    impl tower_service::Service<Request<Incoming>> for TowerText {
        type Response = Response<String>;
        type Error = Infallible;
        type Future = Ready<Result<Response<String>, Infallible>>;

        fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
            Poll::Ready(Ok(()))
        }

        fn call(&mut self, _: Request<Incoming>) -> Self::Future {
            ready(Ok(Response::new(self.0.to_string())))
        }
    }

    /// Returns the name of the type that the worker calls.
    fn service_type<M, S: IntoHttpService<M>>(_: S) -> &'static str {
        std::any::type_name::<S::Service>()
    }

    #[test]
    fn services_of_hyper_are_called_directly_and_those_of_tower_by_an_adapter() {
        let adapter = std::any::type_name::<TowerToHyperService<TowerText>>();
        assert_eq!(service_type(TowerText("text".into())), adapter);
        assert!(service_type(axum::Router::new()).contains("TowerToHyperService"));
        // The compiler infers the type of the request.
        let text = service_fn(|_| async { Ok::<_, BoxError>(Response::new(String::new())) });
        assert!(!service_type(text).contains("TowerToHyperService"));
    }
}
