//! The small HTTP server of each daemon.

use std::net::SocketAddr;
use std::sync::Arc;

use axum::Router;
use axum::extract::State;
use axum::http::StatusCode;
use axum::routing::get;
use prometheus::{Registry, TextEncoder};

/// Says whether the daemon is well: `Err` has the reason why not.
pub type Health = Arc<dyn Fn() -> Result<(), String> + Send + Sync>;

/// Binds `address` (`host:port`; port 0 takes a free one) and serves `/metrics` of `registry`, `/healthz`, and
/// `extra` on the current tokio runtime, until the runtime ends. Returns the address that was bound.
///
/// # Errors
///
/// If the address cannot be bound.
pub async fn serve(address: &str, registry: Registry, health: Health, extra: Router) -> std::io::Result<SocketAddr> {
    let listener = tokio::net::TcpListener::bind(address).await?;
    let bound = listener.local_addr()?;
    let own = Router::new()
        .route("/metrics", get(metrics).with_state(registry))
        .route("/healthz", get(healthz).with_state(health));
    let app = own.merge(extra);
    tokio::spawn(async move {
        if let Err(error) = axum::serve(listener, app).await {
            tracing::error!(%error, "the http server ended");
        }
    });
    Ok(bound)
}

async fn metrics(State(registry): State<Registry>) -> (StatusCode, String) {
    match TextEncoder::new().encode_to_string(&registry.gather()) {
        Ok(text) => (StatusCode::OK, text),
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, error.to_string()),
    }
}

async fn healthz(State(health): State<Health>) -> (StatusCode, String) {
    match health() {
        Ok(()) => (StatusCode::OK, "ok\n".into()),
        Err(reason) => (StatusCode::SERVICE_UNAVAILABLE, format!("{reason}\n")),
    }
}
