package content

import (
	"crypto/sha256"
	"errors"
	"fmt"

	"github.com/ipfs/go-cid"
	mh "github.com/multiformats/go-multihash"
)

// Sizes of blocks, in bytes.
const (
	// MaxBlock is the largest block this package makes.
	MaxBlock = 1 << 20
	// MaxBlockHard is the largest block it stores, serves and fetches; the
	// limit other IPFS implementations use for a transferred block.
	MaxBlockHard = 2 << 20
)

// Errors a caller decides on.
var (
	// ErrNotFound says that a block is not in the store.
	ErrNotFound = errors.New("block not found")
	// ErrMismatch says that bytes do not have the digest that names them.
	ErrMismatch = errors.New("bytes do not match their digest")
	// ErrUnsupportedCID says that a CID is none this package stores.
	ErrUnsupportedCID = errors.New("unsupported CID")
	// ErrTooLarge says that something exceeds a limit.
	ErrTooLarge = errors.New("too large")
	// ErrFull says that the store's quota is used up.
	ErrFull = errors.New("the block store is full")
	// ErrClosed says that the store was closed.
	ErrClosed = errors.New("the block store is closed")
	// ErrMalformed says that a block's bytes cannot be read as what they should be.
	ErrMalformed = errors.New("malformed block")
	// ErrUnsafe says that content tries to reach outside its folder.
	ErrUnsafe = errors.New("unsafe content")
)

// key is a block's sha2-256 digest: what the store finds blocks by. The codec
// is how a reader looks at a block, so it is not part of the key.
type key [sha256.Size]byte

// codec is one of the codecs in use, small enough for compact queues.
type codec uint8

const (
	codecRaw codec = iota
	codecPB
	codecCBOR
)

// ref names a block and how to read it, in 33 bytes without pointers.
type ref struct {
	key   key
	codec codec
}

func (c codec) code() uint64 {
	switch c {
	case codecPB:
		return cid.DagProtobuf
	case codecCBOR:
		return cid.DagCBOR
	default:
		return cid.Raw
	}
}

// cid returns the CIDv1 of r.
func (r ref) cid() cid.Cid {
	h, err := mh.Encode(r.key[:], mh.SHA2_256)
	if err != nil { // Encode only fails for an unknown hash code
		return cid.Undef
	}
	return cid.NewCidV1(r.codec.code(), h)
}

func (r ref) String() string { return r.cid().String() }

// refOf takes a CID apart. A CIDv0 is read as the CIDv1 it stands for.
func refOf(c cid.Cid) (ref, error) {
	if !c.Defined() {
		return ref{}, fmt.Errorf("%w: empty CID", ErrUnsupportedCID)
	}
	var r ref
	switch p := c.Prefix(); p.Codec {
	case cid.Raw:
		r.codec = codecRaw
	case cid.DagProtobuf:
		r.codec = codecPB
	case cid.DagCBOR:
		r.codec = codecCBOR
	default:
		return ref{}, fmt.Errorf("%w: %s has codec 0x%x; raw, dag-pb and dag-cbor are understood", ErrUnsupportedCID, c, p.Codec)
	}
	d, err := mh.Decode(c.Hash())
	if err != nil {
		return ref{}, fmt.Errorf("%w: %s: %w", ErrUnsupportedCID, c, err)
	}
	if d.Code != mh.SHA2_256 || len(d.Digest) != sha256.Size {
		return ref{}, fmt.Errorf("%w: %s is hashed with %s; only sha2-256 of 32 bytes is understood", ErrUnsupportedCID, c, d.Name)
	}
	copy(r.key[:], d.Digest)
	return r, nil
}

// Normalize returns the CIDv1 that c stands for: itself for a CIDv1, the
// dag-pb CIDv1 for a CIDv0. Any hash but sha2-256 and any codec but raw,
// dag-pb and dag-cbor is ErrUnsupportedCID.
func Normalize(c cid.Cid) (cid.Cid, error) {
	r, err := refOf(c)
	if err != nil {
		return cid.Undef, err
	}
	return r.cid(), nil
}

// ParseCID reads the text of a CID and normalizes it.
func ParseCID(s string) (cid.Cid, error) {
	c, err := cid.Decode(s)
	if err != nil {
		return cid.Undef, fmt.Errorf("%q is not a CID: %w", s, err)
	}
	return Normalize(c)
}

// rawRef returns the ref of data as a raw block.
func rawRef(data []byte) ref { return ref{key: sha256.Sum256(data)} }
