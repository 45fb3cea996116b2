package job

import (
	"context"
	"sync"
	"time"
)

const (
	cachedFor  = 5 * time.Second // how long a measured image is believed to be as it was
	maxMeasure = 256             // images whose measure is remembered
)

// cachedImages remembers how much of each image is here: every offer of any
// stranger asks for it, and a large image takes a while to walk. Each image is
// measured by one at a time.
type cachedImages struct {
	mu     sync.Mutex
	images map[string]*cachedImage
}

type cachedImage struct {
	turn  chan struct{} // full while somebody measures
	bytes uint64
	until time.Time
}

// bytes are how many of an image's are here, or were moments ago.
func (c *cachedImages) bytes(ctx context.Context, content ProviderContent, root []byte, now time.Time) uint64 {
	im := c.of(string(root))
	select {
	case im.turn <- struct{}{}:
	case <-ctx.Done():
		return 0
	}
	defer func() { <-im.turn }()
	if now.Before(im.until) {
		return im.bytes
	}
	im.bytes = content.CachedImage(ctx, root)
	if ctx.Err() == nil { // else it is no whole measure
		im.until = now.Add(cachedFor)
	}
	return im.bytes
}

func (c *cachedImages) of(root string) *cachedImage {
	c.mu.Lock()
	defer c.mu.Unlock()
	if im := c.images[root]; im != nil {
		return im
	}
	if len(c.images) >= maxMeasure {
		c.images = nil
	}
	if c.images == nil {
		c.images = map[string]*cachedImage{}
	}
	im := &cachedImage{turn: make(chan struct{}, 1)}
	c.images[root] = im
	return im
}

// changed has an image measured again, for it was fetched.
func (c *cachedImages) changed(root []byte) {
	c.mu.Lock()
	defer c.mu.Unlock()
	delete(c.images, string(root))
}
