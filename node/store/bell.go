package store

import "sync"

// bell wakes those who wait for something to be committed. A listener is rung
// once, at the next commit that concerns its key.
type bell struct {
	mu    sync.Mutex
	rings map[string]*ring
}

type ring struct {
	ch        chan struct{}
	listeners int
}

// listen returns a channel that closes at the next ring of the key; stop ends
// the wait.
func (b *bell) listen(key string) (ch <-chan struct{}, stop func()) {
	b.mu.Lock()
	defer b.mu.Unlock()
	r := b.rings[key]
	if r == nil {
		if b.rings == nil {
			b.rings = map[string]*ring{}
		}
		r = &ring{ch: make(chan struct{})}
		b.rings[key] = r
	}
	r.listeners++
	return r.ch, func() {
		b.mu.Lock()
		defer b.mu.Unlock()
		r.listeners--
		if r.listeners == 0 && b.rings[key] == r {
			delete(b.rings, key)
		}
	}
}

func (b *bell) ring(keys map[string]struct{}) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for key := range keys {
		if r := b.rings[key]; r != nil {
			close(r.ch)
			delete(b.rings, key)
		}
	}
}
