package client

import (
	"context"
	"net/http"
	"net/url"
	"time"
)

// Status is the node at a glance.
func (c *Client) Status(ctx context.Context) (Status, error) {
	return get[Status](ctx, c, "/v1/status", nil)
}

// Identity is who the node is and where it is reached.
func (c *Client) Identity(ctx context.Context) (Identity, error) {
	return get[Identity](ctx, c, "/v1/id", nil)
}

// Shutdown asks the node to end. It returns when the node has begun to.
// Containers run on and are found again by the next start, unless stopJobs ends
// them too.
func (c *Client) Shutdown(ctx context.Context, stopJobs bool) error {
	return c.call(ctx, http.MethodPost, "/v1/shutdown", nil, ShutdownRequest{StopJobs: stopJobs}, nil)
}

// Netcheck is the state of the node's reachability.
func (c *Client) Netcheck(ctx context.Context) (Netcheck, error) {
	return get[Netcheck](ctx, c, "/v1/netcheck", nil)
}

// Ping measures the way to a peer, given by its id or address.
func (c *Client) Ping(ctx context.Context, peer string) (PeerPing, error) {
	return post[PeerPing](ctx, c, "/v1/ping", PingRequest{Peer: peer})
}

// Offers lists providers found, for a GPU model or all when gpu is empty.
func (c *Client) Offers(ctx context.Context, gpu string) ([]ProviderOffer, error) {
	q := url.Values{}
	if gpu != "" {
		q.Set("gpu", gpu)
	}
	return get[[]ProviderOffer](ctx, c, "/v1/offers", q)
}

// ProviderPause stops selling; what runs goes on.
func (c *Client) ProviderPause(ctx context.Context) (ProviderStats, error) {
	return post[ProviderStats](ctx, c, "/v1/provider/pause", nil)
}

// ProviderResume sells again.
func (c *Client) ProviderResume(ctx context.Context) (ProviderStats, error) {
	return post[ProviderStats](ctx, c, "/v1/provider/resume", nil)
}

// ProviderDrain withdraws the provider from the network and lets what runs end.
func (c *Client) ProviderDrain(ctx context.Context) (ProviderStats, error) {
	return post[ProviderStats](ctx, c, "/v1/provider/drain", nil)
}

// ProviderPrice changes what the provider asks of new jobs.
func (c *Client) ProviderPrice(ctx context.Context, r PriceRequest) (Prices, error) {
	return post[Prices](ctx, c, "/v1/provider/price", r)
}

// Wallet is what the node owes and is owed.
func (c *Client) Wallet(ctx context.Context) (Wallet, error) {
	return get[Wallet](ctx, c, "/v1/wallet", nil)
}

// Statement lists what was booked since a time; zero is the beginning.
func (c *Client) Statement(ctx context.Context, since time.Time) (Statement, error) {
	return get[Statement](ctx, c, "/v1/ledger/statement", sinceQuery(since))
}

// Contracts lists the leases of the node as a provider.
func (c *Client) Contracts(ctx context.Context) ([]Contract, error) {
	return get[[]Contract](ctx, c, "/v1/leases", nil)
}

func sinceQuery(t time.Time) url.Values {
	q := url.Values{}
	if !t.IsZero() {
		q.Set("since", t.UTC().Format(time.RFC3339Nano))
	}
	return q
}
