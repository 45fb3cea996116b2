package api

import (
	"context"
	"net/http"
	"reflect"
	"strconv"
	"time"

	"github.com/danielgtaylor/huma/v2"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"github.com/lumbung-net/lumbung/node/client"
)

// Input that several routes take.
type (
	nothing   struct{}
	in[T any] struct{ Body T }
	jobInput  struct {
		Job string `path:"job" maxLength:"200" doc:"The job's id, a prefix of it that no other has, or its name"`
	}
	// jobWith is a job with a body.
	jobWith[T any] struct {
		Job  string `path:"job" maxLength:"200" doc:"The job's id, a prefix of it that no other has, or its name"`
		Body T
	}
)

// routes is the whole API.
func (s *Server) routes() http.Handler {
	mux := http.NewServeMux()
	g := registrar{s: s, api: newAPI(mux)}
	g.node()
	g.jobs()
	g.jobStreams()
	g.content()
	g.dag()
	g.files()
	g.market()
	g.events()
	finish(g.api)
	doc := document(g.api)
	mux.HandleFunc("GET /openapi.json", func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "application/openapi+json")
		_, _ = w.Write(doc)
	})
	mux.Handle("GET /metrics", promhttp.HandlerFor(s.opt.Gatherer, promhttp.HandlerOpts{
		EnableOpenMetrics: true, MaxRequestsInFlight: 4, Timeout: 10 * time.Second,
	}))
	mux.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) { noRoute(mux, w, r) })
	return readWhole(mux)
}

// noRoute tells a wrong path from a wrong method.
func noRoute(mux *http.ServeMux, w http.ResponseWriter, r *http.Request) {
	for _, m := range []string{http.MethodGet, http.MethodPost, http.MethodDelete} {
		other := &http.Request{Method: m, URL: r.URL, Host: r.Host}
		if _, pattern := mux.Handler(other); pattern != "/" {
			w.Header().Add("Allow", m)
		}
	}
	status, code := http.StatusNotFound, "no_route"
	if w.Header().Get("Allow") != "" {
		status, code = http.StatusMethodNotAllowed, "bad_method"
	}
	p := badRequest(status, code, "there is no "+r.Method+" "+clip(r.URL.Path, 200))
	p.Remedy = "GET /openapi.json lists the routes"
	writeProblem(w, p)
}

func (g registrar) node() {
	b := g.s.opt.Backend
	const tag = "node"
	answers(g, route{"GET", "/v1/status", "status", "The node at a glance", tag, 0},
		func(ctx context.Context, _ *nothing) (client.Status, error) { return b.Status(ctx) })
	answers(g, route{"GET", "/v1/id", "identity", "Who the node is and where it is reached", tag, 0},
		func(ctx context.Context, _ *nothing) (client.Identity, error) { return b.Identity(ctx) })
	does(g, route{"POST", "/v1/shutdown", "shutdown", "Begin to end the node", tag, http.StatusAccepted},
		func(ctx context.Context, r *in[client.ShutdownRequest]) error {
			return b.Shutdown(ctx, r.Body.StopJobs)
		})
	answers(g, route{"GET", "/v1/netcheck", "netcheck", "The state of the node's reachability", tag, 0},
		func(ctx context.Context, _ *nothing) (client.Netcheck, error) { return b.Netcheck(ctx) })
	answers(g, route{"POST", "/v1/ping", "ping", "Measure the way to a peer", tag, 0},
		func(ctx context.Context, r *in[client.PingRequest]) (client.PeerPing, error) {
			if err := needed("peer", r.Body.Peer, 1024); err != nil {
				return client.PeerPing{}, err
			}
			return b.Ping(ctx, r.Body.Peer)
		})
}

func (g registrar) jobs() {
	b := g.s.opt.Backend
	const tag = "jobs"
	works(g, route{"POST", "/v1/jobs", "submit", "Submit a job", tag, 0},
		func(ctx context.Context, r *in[client.SubmitRequest], progress func(client.Progress)) (client.Job, error) {
			if err := checkSubmit(&r.Body); err != nil {
				return client.Job{}, err
			}
			return b.Submit(ctx, r.Body, progress)
		})
	works(g, route{"POST", "/v1/quote", "quote", "Ask providers what a job would cost", tag, 0},
		func(ctx context.Context, r *in[client.SubmitRequest], progress func(client.Progress)) (client.Quote, error) {
			if err := checkSubmit(&r.Body); err != nil {
				return client.Quote{}, err
			}
			r.Body.Secrets = nil // no price depends on them
			return b.Quote(ctx, r.Body, progress)
		})
	type listInput struct {
		All bool `query:"all" doc:"Those that are over, too"`
	}
	lists(g, route{"GET", "/v1/jobs", "jobs", "List jobs, newest first", tag, 0},
		func(ctx context.Context, r *listInput) ([]client.Job, error) { return b.Jobs(ctx, r.All) })
	answers(g, route{"GET", "/v1/jobs/{job}", "job", "All there is to know of a job", tag, 0},
		func(ctx context.Context, r *jobInput) (client.JobDetail, error) { return b.Job(ctx, r.Job) })
	answers(g, route{"POST", "/v1/jobs/{job}/stop", "stop", "End a job", tag, 0},
		func(ctx context.Context, r *jobWith[client.StopRequest]) (client.Job, error) {
			if err := between("grace_ns", r.Body.Grace, 0, 24*time.Hour); err != nil {
				return client.Job{}, err
			}
			return b.StopJob(ctx, r.Job, r.Body.Grace)
		})
}

func (g registrar) jobStreams() {
	b := g.s.opt.Backend
	const tag = "jobs"
	type logsInput struct {
		Job    string    `path:"job" maxLength:"200" doc:"The job's id, a prefix of it that no other has, or its name"`
		Since  time.Time `query:"since" doc:"Only what is not older; RFC 3339"`
		Task   int       `query:"task" default:"-1" minimum:"-1" doc:"One task; -1 is all"`
		From   uint64    `query:"from" doc:"The first record's number"`
		Follow bool      `query:"follow" doc:"Wait for more until the job is over"`
	}
	raw(g, route{"GET", "/v1/jobs/{job}/logs", "logs", "What a job's tasks wrote", tag, 0},
		media{linesType, g.schema(reflect.TypeFor[client.LogLine]())},
		func(w http.ResponseWriter, r *http.Request, q *logsInput) {
			g.s.logs(r.Context(), w, q.Job, client.LogQuery{Task: q.Task, From: q.From, Since: q.Since, Follow: q.Follow})
		})
	works(g, route{"POST", "/v1/jobs/{job}/outputs", "outputs", "Write a job's outputs to a folder of this machine", tag, 0},
		func(ctx context.Context, r *jobWith[client.OutputsRequest], progress func(client.Progress)) (client.Fetched, error) {
			if err := checkOutputs(r.Body); err != nil {
				return client.Fetched{}, err
			}
			return b.GetOutputs(ctx, r.Job, r.Body.Dest, r.Body.Task, progress)
		})
	frames := &huma.Schema{Description: "The connection carries frames of " + client.ExecProtocol + " both ways: a byte of type " +
		"(1 stdin, 2 stdout, 3 stderr, 4 resize, 5 exit, 6 error, 7 end of stdin, 8 ping), four of length, big endian, then at most 64 KiB of data"}
	raw(g, route{"POST", "/v1/jobs/{job}/exec", "exec", "Run a command in a task's container", tag, http.StatusSwitchingProtocols},
		media{schema: frames}, func(w http.ResponseWriter, r *http.Request, q *jobWith[client.ExecRequest]) {
			if err := checkExec(q.Body); err != nil {
				writeProblem(w, g.s.problem(err))
				return
			}
			g.s.exec(r.Context(), w, r, q.Job, q.Body)
		})
	type portInput struct {
		Job  string `path:"job" maxLength:"200" doc:"The job's id, a prefix of it that no other has, or its name"`
		Port uint16 `query:"port" required:"true" minimum:"1" maximum:"65535" doc:"The TCP port that a program in the container listens on"`
		Task int    `query:"task" minimum:"0" doc:"One task of an array"`
	}
	bytes := &huma.Schema{Description: "The connection carries the bytes of a connection to the port, upgraded to " + client.PortProtocol +
		"; each direction ends by itself"}
	raw(g, route{"POST", "/v1/jobs/{job}/port", "port", "Connect to a port of a task's container", tag, http.StatusSwitchingProtocols},
		media{schema: bytes}, func(w http.ResponseWriter, r *http.Request, q *portInput) {
			g.s.port(r.Context(), w, r, q.Job, q.Task, q.Port)
		})
}

func (g registrar) content() {
	b := g.s.opt.Backend
	const tag = "content"
	works(g, route{"POST", "/v1/images", "loadImage", "Bring an image into the store", tag, 0},
		func(ctx context.Context, r *in[client.PathRequest], progress func(client.Progress)) (client.Image, error) {
			if err := checkImage(r.Body); err != nil {
				return client.Image{}, err
			}
			return b.LoadImage(ctx, r.Body, progress)
		})
	works(g, route{"POST", "/v1/images/from", "imageFrom", "Make an image of one static program", tag, 0},
		func(ctx context.Context, r *in[client.FromRequest], progress func(client.Progress)) (client.Image, error) {
			if err := checkFrom(r.Body); err != nil {
				return client.Image{}, err
			}
			return b.ImageFrom(ctx, r.Body, progress)
		})
	lists(g, route{"GET", "/v1/images", "images", "List images", tag, 0},
		func(ctx context.Context, _ *nothing) ([]client.Image, error) { return b.Images(ctx) })
	type imageInput struct {
		Image string `path:"image" maxLength:"300" doc:"Name or id"`
	}
	does(g, route{"DELETE", "/v1/images/{image}", "removeImage", "Forget an image", tag, 0},
		func(ctx context.Context, r *imageInput) error { return b.RemoveImage(ctx, r.Image) })
	works(g, route{"POST", "/v1/blocks/add", "add", "Make blocks of a file or folder", tag, 0},
		func(ctx context.Context, r *in[client.PathRequest], progress func(client.Progress)) (client.Added, error) {
			if err := absolute("path", r.Body.Path); err != nil {
				return client.Added{}, err
			}
			return b.Add(ctx, r.Body, progress)
		})
	type catInput struct {
		Path string `query:"path" required:"true" maxLength:"4096" doc:"A CID, with a path below it or without"`
	}
	raw(g, route{"GET", "/v1/blocks/cat", "cat", "The bytes of a file", tag, 0},
		media{"application/octet-stream", &huma.Schema{Type: huma.TypeString, Format: "binary"}},
		func(w http.ResponseWriter, r *http.Request, q *catInput) { g.s.cat(r.Context(), w, q.Path) })
	works(g, route{"POST", "/v1/pins", "pin", "Keep a DAG, fetching what is missing", tag, 0},
		func(ctx context.Context, r *in[client.PinRequest], progress func(client.Progress)) (client.Added, error) {
			if err := checkPin(r.Body); err != nil {
				return client.Added{}, err
			}
			return b.Pin(ctx, r.Body, progress)
		})
	lists(g, route{"GET", "/v1/pins", "pins", "List what is kept by hand", tag, 0},
		func(ctx context.Context, _ *nothing) ([]client.Pin, error) { return b.Pins(ctx) })
	type pinInput struct {
		CID string `path:"cid" maxLength:"200"`
	}
	does(g, route{"DELETE", "/v1/pins/{cid}", "unpin", "Let a DAG go", tag, 0},
		func(ctx context.Context, r *pinInput) error { return b.Unpin(ctx, r.CID) })
	answers(g, route{"POST", "/v1/gc", "gc", "Give back the room of blocks that nothing needs", tag, 0},
		func(ctx context.Context, _ *nothing) (client.Collected, error) { return b.GC(ctx) })
	works(g, route{"POST", "/v1/blocks/check", "checkBlocks", "Read every block, and take out the damaged ones", tag, 0},
		func(ctx context.Context, _ *nothing, progress func(client.Progress)) (client.Checked, error) {
			return b.CheckBlocks(ctx, progress)
		})
}

func (g registrar) market() {
	b := g.s.opt.Backend
	type offersInput struct {
		GPU string `query:"gpu" maxLength:"64" doc:"Only providers with this model"`
	}
	lists(g, route{"GET", "/v1/offers", "offers", "Who offers what, now", "market", 0},
		func(ctx context.Context, r *offersInput) ([]client.ProviderOffer, error) { return b.Offers(ctx, r.GPU) })
	const tag = "provider"
	answers(g, route{"POST", "/v1/provider/pause", "pause", "Stop selling; what runs goes on", tag, 0},
		func(ctx context.Context, _ *nothing) (client.ProviderStats, error) { return b.ProviderPause(ctx) })
	answers(g, route{"POST", "/v1/provider/resume", "resume", "Sell again", tag, 0},
		func(ctx context.Context, _ *nothing) (client.ProviderStats, error) { return b.ProviderResume(ctx) })
	answers(g, route{"POST", "/v1/provider/drain", "drain", "Withdraw, and let what runs end", tag, 0},
		func(ctx context.Context, _ *nothing) (client.ProviderStats, error) { return b.ProviderDrain(ctx) })
	answers(g, route{"POST", "/v1/provider/price", "price", "Change what is asked of new jobs", tag, 0},
		func(ctx context.Context, r *in[client.PriceRequest]) (client.Prices, error) {
			if err := checkPrices(r.Body); err != nil {
				return client.Prices{}, err
			}
			return b.ProviderPrice(ctx, r.Body)
		})
	lists(g, route{"GET", "/v1/leases", "leases", "The leases of the provider", tag, 0},
		func(ctx context.Context, _ *nothing) ([]client.Contract, error) { return b.Contracts(ctx) })
	type statementInput struct {
		Since time.Time `query:"since" doc:"Only what is not older; RFC 3339"`
	}
	answers(g, route{"GET", "/v1/wallet", "wallet", "What is owed and due", "money", 0},
		func(ctx context.Context, _ *nothing) (client.Wallet, error) { return b.Wallet(ctx) })
	answers(g, route{"GET", "/v1/ledger/statement", "statement", "What was booked", "money", 0},
		func(ctx context.Context, r *statementInput) (client.Statement, error) {
			return b.Statement(ctx, r.Since)
		})
}

func (g registrar) events() {
	b := g.s.opt.Backend
	const tag = "events"
	type eventsInput struct {
		Since uint64 `query:"since" doc:"Only events with a greater number; all when left out"`
		Last  string `header:"Last-Event-ID" pattern:"^[0-9]{1,19}$" doc:"Sent by browsers that resume; goes before since"`
	}
	message := g.schema(reflect.TypeFor[client.Event]())
	raw(g, route{"GET", "/v1/events", "events", "Events of the past, then as they happen", tag, 0},
		media{"text/event-stream", message}, func(w http.ResponseWriter, r *http.Request, q *eventsInput) {
			if n, err := strconv.ParseUint(q.Last, 10, 64); err == nil {
				q.Since = n
			}
			g.s.events(r.Context(), w, q.Since)
		})
	answers(g, route{"GET", "/v1/events/last", "lastEvent", "The newest event's number", tag, 0},
		func(ctx context.Context, _ *nothing) (client.LastEvent, error) {
			n, err := b.LastEvent(ctx)
			return client.LastEvent{Seq: n}, err
		})
}
