package client

import (
	"context"
	"net/http"
)

// Checked is what a check of all blocks found.
type Checked struct {
	Blocks  uint64 `json:"blocks"` // read
	Bytes   uint64 `json:"bytes"`
	Damaged uint64 `json:"damaged"` // taken out of the store
	// Found tells of the first thousand damaged blocks.
	Found []DamagedBlock `json:"found,omitempty"`
}

// DamagedBlock is a block that was found damaged and taken out of the store.
type DamagedBlock struct {
	CID    string `json:"cid"`
	Pack   string `json:"pack"`   // the file it was in
	Offset uint64 `json:"offset"` // of its first byte there
	Bytes  uint64 `json:"bytes"`
	Reason string `json:"reason"`
	// Roots need the block. Pinning one fetches it again.
	Roots []DamagedRoot `json:"roots,omitempty"`
}

// DamagedRoot is something kept that a damaged block is of.
type DamagedRoot struct {
	CID string `json:"cid"`
	// What is "image NAME", "pin", "pin of PATH", or empty for something that a
	// job keeps.
	What string `json:"what,omitempty"`
}

// CheckBlocks reads every block of the node's store and takes the damaged ones
// out.
func (c *Client) CheckBlocks(ctx context.Context, progress func(Progress)) (Checked, error) {
	return stream[Checked](ctx, c, http.MethodPost, "/v1/blocks/check", nil, progress)
}
