//! Placement's catalogue over HTTP: refs, images, records, tickets.
//!
//! In paths the `/` of a ref with a tenant is written `%2F`. Bodies are `application/json`. An answer
//! that is not a success holds an [`ErrorBody`](crate::ErrorBody).
//!
//! | method and path | body → answer | who |
//! |---|---|---|
//! | `GET /v1/images` | → [`ImageList`]; with `?ancestors=true` ([`ListImages`]) what they were made from, too | any member |
//! | `GET /v1/images/{name}` | → [`ImageInfo`]; `name` is a ref or a digest | any member |
//! | `POST /v1/images/{digest}/record` | [`NewRecord`] → [`ImageInfo`] | writers |
//! | `GET /v1/images/{name}/trace` | → [`TraceBody`](crate::trace::TraceBody); gone while there is none | any member |
//! | `POST /v1/images/{digest}/trace` | [`TraceBody`](crate::trace::TraceBody), one recording → [`TraceInfo`] | writers |
//! | `POST /v1/images/{name}/verify` | [`VerifyRequest`] → [`VerifyReport`] | any member |
//! | `PUT /v1/refs/{ref}` | [`MoveRef`] → [`RefInfo`] | writers |
//! | `DELETE /v1/refs/{ref}` | → [`RefInfo`] as it was; with `?expect=DIGEST` ([`DeleteRef`]) only if it points there | admin |
//! | `POST /v1/tickets` | [`TicketRequest`] → [`TicketAnswer`] | any member |
//! | `POST /v1/store/verify` | [`VerifyStoreRequest`] → [`StoreReport`] | admin |
//! | `POST /v1/gc` | [`GcRequest`] → [`GcReport`] | admin |

#![expect(unused_qualifications, reason = "what utoipa derives for an optional object")]

use std::collections::BTreeMap;

use image::record::{ImageKind, Unread};
use image::{Digest, ImageRecord, Ref};
use serde::{Deserialize, Serialize};
use utoipa::openapi::schema::{ObjectBuilder, OneOfBuilder, Type};
use utoipa::openapi::{RefOr, Schema};
use utoipa::{IntoParams, PartialSchema, ToSchema};

use crate::grid::CacheInfo;
use crate::lease::HeldLease;
use crate::trace::TraceInfo;

/// A ref and where it points.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct RefInfo {
    /// The name.
    #[serde(rename = "ref")]
    #[schema(value_type = String)]
    pub name: Ref,
    /// The image.
    #[schema(value_type = String)]
    pub image: Digest,
    /// When it was last moved, in seconds since 1970.
    pub moved: u64,
}

/// An image and what is known of it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ImageInfo {
    /// Its identity.
    #[schema(value_type = String)]
    pub image: Digest,
    /// The refs that point at it.
    #[schema(value_type = Vec<String>)]
    pub refs: Vec<Ref>,
    /// Disk size in bytes.
    pub size: u64,
    /// Logical sector size in bytes.
    pub sector: u32,
    /// Chunk length in bytes.
    pub chunk: u32,
    /// Sections of the disk.
    pub sections: u32,
    /// Sections that are not zeros.
    pub sections_present: u32,
    /// Chunks that are not zeros.
    pub chunks_present: u64,
    /// Bytes of the frames that the image leans on (shared with other images or not).
    pub stored: u64,
    /// The newest record, its signature checked.
    #[schema(value_type = Option<Object>)]
    pub record: Option<ImageRecord>,
    /// How much is known of how its guests start.
    #[serde(default)]
    pub boot_trace: Option<TraceInfo>,
}

impl ImageInfo {
    /// Bytes of the chunks that are not zeros; less than a chunk too many, as if none were short.
    pub fn data(&self) -> u64 {
        self.chunks_present.saturating_mul(u64::from(self.chunk)).min(self.size)
    }
}

/// What a list of images shall hold.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, IntoParams)]
#[serde(default, deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct ListImages {
    /// The images, too, from which those with a ref were made, and from which these were made; with the first page.
    pub ancestors: bool,
    /// See [`Page`](crate::page::Page).
    pub limit: Option<u32>,
    /// See there.
    pub after: Option<String>,
}

/// All images that have a ref.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ImageList {
    /// One entry per ref, in the order of the names.
    pub images: Vec<ImageLine>,
    /// The images without a ref from which they were made, by what their records say; if it was asked for, and at
    /// most 10,000.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ancestors: Option<Vec<Ancestor>>,
}

/// An image without a ref, from which others were made.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Ancestor {
    /// The image.
    #[schema(value_type = String)]
    pub image: Digest,
    /// It does not exist any more: nothing else is known of it.
    #[serde(default)]
    pub gone: bool,
    /// Disk size in bytes.
    pub size: u64,
    /// Bytes of the frames that the image leans on.
    pub stored: u64,
    /// When the image was made, in seconds since 1970, as its record says.
    pub created: Option<u64>,
    /// Operating system, as its record says.
    pub os: Option<String>,
    /// What kind of image it is, as its record says.
    #[schema(value_type = Option<String>)]
    pub kind: Option<ImageKind>,
    /// The image that it was made from, as its record says.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    pub parent: Option<Digest>,
    /// Why the store could not describe the image; then sizes are 0.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub problem: Option<String>,
}

impl Ancestor {
    /// Nothing is known of it yet.
    pub fn unknown(image: Digest) -> Self {
        Self {
            image,
            gone: false,
            size: 0,
            stored: 0,
            created: None,
            os: None,
            kind: None,
            parent: None,
            problem: None,
        }
    }
}

/// A line of the list of images.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ImageLine {
    /// The name.
    #[serde(rename = "ref")]
    #[schema(value_type = String)]
    pub name: Ref,
    /// The image.
    #[schema(value_type = String)]
    pub image: Digest,
    /// Disk size in bytes.
    pub size: u64,
    /// Bytes of the frames that the image leans on.
    pub stored: u64,
    /// When the image was made, in seconds since 1970, as its record says.
    pub created: Option<u64>,
    /// Operating system, as its record says.
    pub os: Option<String>,
    /// What kind of image it is, as its record says.
    #[schema(value_type = Option<String>)]
    pub kind: Option<ImageKind>,
    /// The image that it was made from, as its record says.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    pub parent: Option<Digest>,
    /// Labels, as its record says.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<String, String>,
    /// Why the store could not describe the image; then sizes are 0.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub problem: Option<String>,
}

/// What a writer says of an image. What it leaves out stays as it was said before; placement fills in
/// the rest and signs it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(default)]
pub struct NewRecord {
    /// The image it was made from.
    #[schema(value_type = Option<String>)]
    pub parent: Option<Digest>,
    /// What kind of image it is; `os` if nobody says.
    #[schema(value_type = Option<String>)]
    pub kind: Option<ImageKind>,
    /// Operating system.
    pub os: Option<String>,
    /// CPU architecture.
    pub architecture: Option<String>,
    /// `bios` or `uefi`.
    pub firmware: Option<String>,
    /// CPUs that it wants.
    pub cpus: Option<u32>,
    /// Memory that it wants, in MiB.
    pub memory_mib: Option<u64>,
    /// Network interfaces that it wants.
    pub nics: Option<u32>,
    /// Hypervisor that it was made for.
    pub hypervisor: Option<String>,
    /// Anything else.
    pub labels: BTreeMap<String, String>,
    /// What could not be read of the disk that it was made of.
    #[schema(value_type = Option<Object>)]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub unread: Option<Unread>,
}

/// Moves or makes a ref.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct MoveRef {
    /// Where it shall point.
    #[schema(value_type = String)]
    pub image: Digest,
    /// What the mover believes of the ref now.
    #[serde(default)]
    pub expect: Expect,
    /// The lease under which the image was captured: if another node has had the lease of that volume since, the move
    /// is refused.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fence: Option<HeldLease>,
}

/// What is believed of a ref before it is moved; if it is not so, the move is a conflict.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Expect {
    /// Nothing: the last mover wins.
    #[default]
    Anything,
    /// There is no such ref.
    Absent,
    /// It points at this image.
    At(Digest),
}

/// `"anything"`, `"absent"` or `{"at": "<digest>"}`. By hand: the derive does not take a digest for a
/// text inside a variant.
impl PartialSchema for Expect {
    fn schema() -> RefOr<Schema> {
        let word = ObjectBuilder::new()
            .schema_type(Type::String)
            .enum_values(Some(["anything", "absent"]));
        let digest = ObjectBuilder::new().schema_type(Type::String);
        let at = ObjectBuilder::new().property("at", digest).required("at");
        let says =
            "What is believed of a ref before it is moved: if it is not so, that is a conflict";
        OneOfBuilder::new().item(word).item(at).description(Some(says)).into()
    }
}

impl ToSchema for Expect {}

/// What is believed of a ref before it is deleted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, IntoParams)]
#[serde(default, deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct DeleteRef {
    /// It points at this image; if it does not, that is a conflict, and it stays.
    #[param(value_type = Option<String>)]
    pub expect: Option<Digest>,
}

/// Asks for a ticket.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case", tag = "action")]
pub enum TicketRequest {
    /// To read an image.
    Pull {
        /// A ref or a digest.
        image: String,
    },
    /// To push an image.
    Push {
        /// The trust domain.
        #[serde(default)]
        domain: u32,
        /// A ref or digest of an image that it leans on.
        #[serde(default)]
        parent: Option<String>,
    },
}

/// A ticket, and who takes it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct TicketAnswer {
    /// The image to pull, or the parent of a push.
    #[schema(value_type = Option<String>)]
    pub image: Option<Digest>,
    /// The oldest known ancestor of the image to pull: with it, and the section, nodes choose among
    /// the caches ([`crate::rendezvous`]).
    #[schema(value_type = Option<String>)]
    #[serde(default)]
    pub root: Option<Digest>,
    /// The signed token.
    pub ticket: String,
    /// Until when sessions may be opened with it, in seconds since 1970.
    pub expires: u64,
    /// For a pull the caches to ask; for a push the receivers.
    pub servers: Vec<CacheInfo>,
}

/// Asks the grid to verify a stored image.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(default)]
pub struct VerifyRequest {
    /// Decode every chunk and check its plain bytes; else manifest, tables and footers only.
    pub deep: bool,
}

/// What verification found.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(default)]
pub struct VerifyReport {
    /// Sections that were checked.
    pub sections: u64,
    /// Chunks that were checked.
    pub chunks: u64,
    /// Stored bytes that were read.
    pub bytes: u64,
    /// Bad places that another copy repaired, by name.
    pub repaired: Vec<String>,
    /// Bad places that nothing could repair, by name.
    pub bad: Vec<String>,
}

/// Asks the grid to verify its store, or a random sample of it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(default)]
pub struct VerifyStoreRequest {
    /// Decode every chunk and check its plain bytes; else checksums of what is stored only.
    pub deep: bool,
    /// Begin nothing after so many seconds.
    pub within_secs: Option<u64>,
    /// Begin nothing after so many bytes were read.
    pub bytes: Option<u64>,
    /// Bytes a second at most.
    pub rate: Option<u64>,
    /// Where the order comes from: the same seed, the same order.
    pub seed: u64,
    /// Where an earlier run with this seed ended.
    pub after: Option<String>,
}

/// What the verification of a store found.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(default)]
pub struct StoreReport {
    /// Where the order came from.
    pub seed: u64,
    /// Images whose papers were checked.
    pub images: u64,
    /// Packs that were read.
    pub packs: u64,
    /// Frames in them.
    pub frames: u64,
    /// Bytes that were read.
    pub bytes: u64,
    /// Images and packs that there are.
    pub in_all: u64,
    /// Those that an earlier run had looked at.
    pub before: u64,
    /// Bad places that another copy repaired, by name; the first 1,000.
    pub repaired: Vec<String>,
    /// Bad places that nothing could repair, by name; the first 1,000.
    pub bad: Vec<String>,
    /// Number of bad places, named or not.
    pub bad_places: u64,
    /// What no image leans on, by name, the first 1,000; known only after a look at every image, and if the
    /// papers of all could be read.
    pub orphans: Option<Vec<String>>,
    /// Bytes of the packs among them.
    pub orphan_bytes: u64,
    /// Where to go on, if it stopped early.
    pub next: Option<String>,
}

/// Asks for a collection of garbage.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(default)]
pub struct GcRequest {
    /// Say what would be condemned, and change nothing.
    pub dry_run: bool,
    /// Seconds that a condemned object is kept before it is deleted; the configured time if unset.
    pub grace_secs: Option<u64>,
}

/// What a collection of garbage did.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(default)]
pub struct GcReport {
    /// Images that are reachable.
    pub images: u64,
    /// Objects that were condemned now, and their bytes.
    pub condemned: u64,
    /// Bytes of the objects that were condemned now.
    pub condemned_bytes: u64,
    /// Objects that were deleted now (condemned by an earlier run).
    pub deleted: u64,
    /// Bytes of the objects that were deleted now.
    pub deleted_bytes: u64,
    /// Writers whose sessions hold objects back.
    pub sessions: u64,
    /// Seconds until the condemned objects may be deleted.
    pub wait_secs: u64,
    /// Packs that were rewritten now, for they were mostly dead or small; they are garbage from now on.
    pub rewritten: u64,
    /// New packs that hold what was live in them.
    pub written: u64,
    /// Bytes that this gives back when the old packs are deleted.
    pub saved_bytes: u64,
    /// Images that got a new locator.
    pub relocated: u64,
    /// Packs that could not be rewritten, for they are damaged.
    pub bad_packs: u64,
    /// Whether rewriting reached a limit: the next run goes on with it.
    pub unfinished: bool,
}
