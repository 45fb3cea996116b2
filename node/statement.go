package node

import (
	"context"
	"time"

	"github.com/lumbung-net/lumbung/job"
	"github.com/lumbung-net/lumbung/ledger"
	"github.com/lumbung-net/lumbung/node/client"
	"github.com/lumbung-net/lumbung/node/store"
)

// statement is the journal from a time on, with what each lease was.
func (n *Node) statement(ctx context.Context, since time.Time) (client.Statement, error) {
	s, err := n.db.Statement(ctx, store.EntryFilter{From: since})
	if err != nil {
		return client.Statement{}, err
	}
	out := client.Statement{
		PeerID: n.host.ID().String(), Rows: []client.StatementRow{}, ByPeer: []client.WalletBalance{},
		Owed: ledger.Units(job.Asset, 0), Due: ledger.Units(job.Asset, 0),
	}
	for _, r := range s.Rows {
		side := job.SideProvider
		if r.RenterSide {
			side = job.SideRenter
		}
		out.Rows = append(out.Rows, client.StatementRow{
			Time: r.Time, Side: string(side), Peer: r.Peer, Job: r.Job, Task: r.Task, Lease: r.Lease, State: r.State,
			Usage: r.UsageMs, Price: r.Price, Charge: r.Charge,
		})
	}
	for _, p := range s.Peers {
		out.ByPeer = append(out.ByPeer, client.WalletBalance{Rail: "credit", Peer: p.Peer, Owed: p.Owed, Due: p.Due, Trust: creditTrust})
	}
	for _, t := range s.Totals {
		if t.Owed.Asset == job.Asset || t.Due.Asset == job.Asset {
			out.Owed, out.Due = t.Owed, t.Due
		}
	}
	return out, nil
}
