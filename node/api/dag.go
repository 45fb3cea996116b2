package api

import (
	"io"
	"net/http"

	"github.com/danielgtaylor/huma/v2"

	"github.com/lumbung-net/lumbung/node/client"
)

const importPath = "/v1/dag/import"

// streams says whether a request's body is read as it comes, by its handler.
func streams(r *http.Request) bool { return r.URL.Path == importPath || r.URL.Path == putPath }

const maxFrom = 16 // IPFS nodes that one pin may name

func checkPin(r client.PinRequest) error {
	if err := needed("cid", r.CID, 4096); err != nil {
		return err
	}
	if len(r.From) > maxFrom {
		return refuse("from: %d nodes, over %d", len(r.From), maxFrom)
	}
	for _, addr := range r.From {
		if err := needed("from", addr, 1000); err != nil {
			return err
		}
	}
	return nil
}

// dag registers what takes whole DAGs in and out.
func (g registrar) dag() {
	b := g.s.opt.Backend
	const tag = "content"
	car := &huma.Schema{Type: huma.TypeString, Format: "binary", Description: "A CAR (https://ipld.io/specs/transport/car/)"}
	type exportInput struct {
		CID string `query:"cid" required:"true" maxLength:"200" doc:"The DAG's root"`
	}
	raw(g, route{"GET", "/v1/dag/export", "exportDAG", "A DAG as a CARv1", tag, 0}, media{client.CARType, car},
		func(w http.ResponseWriter, r *http.Request, q *exportInput) {
			g.s.download(w, client.CARType, func(to io.Writer) error { return b.ExportDAG(r.Context(), q.CID, to) })
		})
	takes(g, route{"POST", importPath, "importDAG", "Take a CAR in and pin its roots", tag, 0}, "a CAR of version 1 or 2", "importing", b.ImportDAG)
}
