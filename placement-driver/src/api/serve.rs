//! The HTTP server.
//!
//! Two warp filters pass all requests to [dispatch]: one for GET and HEAD, one for all other
//! methods. The lookup of a key's route is a hot path, and a chain of filters would cost more than
//! the lookup. HEAD is answered as GET, and its body is left out when it is sent.

use super::context::ApiContext;
use super::dispatch;
use super::problem::ApiProblem;
use crate::replica::ReplicaHandles;
use std::convert::Infallible;
use std::future::Future;
use std::sync::Arc;
use tokio::net::TcpListener;
use warp::Filter;
use warp::http::Method;
use warp::http::header::HeaderMap;
use warp::path::FullPath;
use warp::reply::Response;

/// Serves until `end` completes. Requests that are under way then finish.
pub async fn serve(
    listener: TcpListener,
    handles: Arc<ReplicaHandles>,
    end: impl Future<Output = ()> + Send + 'static,
) {
    let api = Arc::new(ApiContext::new(handles));
    warp::serve(filter(api)).incoming(listener).graceful(end).run().await;
}

fn filter(api: Arc<ApiContext>) -> impl Filter<Extract = (Response,), Error = Infallible> + Clone {
    let query = || warp::query::raw().or(warp::any().map(String::new)).unify();
    let reading = api.clone();
    let get = warp::get()
        .or(warp::head())
        .unify()
        .and(warp::path::full())
        .and(query())
        .and(warp::header::optional::<String>("if-none-match"))
        .and(warp::header::optional::<String>("last-event-id"))
        .then(move |path: FullPath, query: String, known: Option<String>, last: Option<String>| {
            let api = reading.clone();
            async move { dispatch::get(&api, path.as_str(), &query, known.as_deref(), last.as_deref()).await }
        });
    let other = warp::method()
        .and(warp::path::full())
        .and(query())
        .and(warp::header::headers_cloned())
        .and(warp::body::stream())
        .then(move |method: Method, path: FullPath, query: String, headers: HeaderMap, body| {
            let api = api.clone();
            async move { dispatch::other(&api, &method, path.as_str(), &query, &headers, body).await }
        });
    get.or(other).unify().recover(unreadable).unify()
}

/// Answers a request that warp itself rejects, such as one with a header that is not text.
async fn unreadable(_: warp::Rejection) -> Result<Response, Infallible> {
    Ok(ApiProblem::bad_request("the request's headers cannot be read").response())
}
