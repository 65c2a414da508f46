//! How the measured programs find the S3 server of a measurement.

/// The access key that it takes.
pub const KEY: &str = "forebay";
/// The secret that goes with [`KEY`].
pub const SECRET: &str = "correct horse";
/// The bucket that it has.
pub const BUCKET: &str = "images";

/// The URL of a store in it.
pub fn url() -> String {
    format!("s3://{BUCKET}/grid")
}

/// The environment variables by which programs find a server at `address`.
pub fn environment(address: &str) -> Vec<(&'static str, String)> {
    vec![
        ("AWS_ENDPOINT", format!("http://{address}")),
        ("AWS_REGION", "us-east-1".into()),
        ("AWS_ALLOW_HTTP", "true".into()),
        ("AWS_ACCESS_KEY_ID", KEY.into()),
        ("AWS_SECRET_ACCESS_KEY", SECRET.into()),
    ]
}
