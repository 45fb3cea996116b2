package api

import (
	"context"
	"fmt"
	"io"
	"reflect"
	"sync"
	"time"

	"github.com/lumbung-net/lumbung/node/client"
)

// filled makes a value of a type with something in every field.
func filled[T any]() T {
	var v T
	n := 0
	fill(reflect.ValueOf(&v).Elem(), &n)
	return v
}

func fill(v reflect.Value, n *int) {
	*n++
	switch v.Interface().(type) {
	case time.Time:
		v.Set(reflect.ValueOf(time.Date(2026, 1, 2, 3, 4, *n%60, 5000, time.UTC)))
		return
	}
	switch v.Kind() {
	case reflect.String:
		v.SetString(fmt.Sprintf("word <%d> é", *n))
	case reflect.Int, reflect.Int32, reflect.Int64:
		v.SetInt(int64(*n))
	case reflect.Uint8:
		v.SetUint(uint64(*n % 256))
	case reflect.Uint16, reflect.Uint32, reflect.Uint64:
		v.SetUint(uint64(*n))
	case reflect.Float64:
		v.SetFloat(float64(*n) + 0.5)
	case reflect.Bool:
		v.SetBool(true)
	case reflect.Pointer:
		v.Set(reflect.New(v.Type().Elem()))
		fill(v.Elem(), n)
	case reflect.Array:
		for i := range v.Len() {
			fill(v.Index(i), n)
		}
	case reflect.Slice:
		if v.Type() == reflect.TypeFor[jsonRaw]() {
			v.SetBytes([]byte(`{"a":[1]}`))
			return
		}
		v.Set(reflect.MakeSlice(v.Type(), 2, 2))
		fill(v.Index(0), n)
		fill(v.Index(1), n)
	case reflect.Map:
		v.Set(reflect.MakeMap(v.Type()))
		key, value := reflect.New(v.Type().Key()).Elem(), reflect.New(v.Type().Elem()).Elem()
		fill(key, n)
		fill(value, n)
		v.SetMapIndex(key, value)
	case reflect.Struct:
		for i := range v.NumField() {
			if v.Type().Field(i).Tag.Get("json") != "-" { // what no answer has
				fill(v.Field(i), n)
			}
		}
	default:
		panic(fmt.Sprintf("fill: %s", v.Type()))
	}
}

// fake is a node that answers with filled values and remembers what it was
// asked. A hook takes a method over.
type fake struct {
	hooks struct {
		status func(context.Context) (client.Status, error)
		submit func(context.Context, client.SubmitRequest, func(client.Progress)) (client.Job, error)
		logs   func(context.Context, client.LogQuery, func(int, client.LogRecord) error) error
		exec   func(context.Context, client.ExecRequest, ExecIO) (int, error)
		port   func(ctx context.Context, accept func() (Half, error)) error
		cat    func(context.Context, io.Writer) error
		job    func() client.JobDetail
	}
	watched chan error // how each Watch ended, when not nil; with room for all

	mu     sync.Mutex
	calls  []string
	fail   error
	events []client.Event
	more   chan struct{} // closed and replaced when an event comes
}

func newFake() *fake { return &fake{more: make(chan struct{})} }

// call remembers a call and says how it is to fail.
func (f *fake) call(format string, args ...any) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.calls = append(f.calls, fmt.Sprintf(format, args...))
	return f.fail
}

func (f *fake) failWith(err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.fail = err
}

func (f *fake) lastCall() string {
	f.mu.Lock()
	defer f.mu.Unlock()
	if len(f.calls) == 0 {
		return ""
	}
	return f.calls[len(f.calls)-1]
}

func answer1[T any](f *fake, format string, args ...any) (T, error) {
	if err := f.call(format, args...); err != nil {
		var zero T
		return zero, err
	}
	return filled[T](), nil
}

// emit appends events with the next numbers.
func (f *fake) emit(events ...client.Event) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, e := range events {
		e.Seq = uint64(len(f.events)) + 1
		f.events = append(f.events, e)
	}
	close(f.more)
	f.more = make(chan struct{})
}

func (f *fake) after(since uint64) ([]client.Event, chan struct{}) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if since >= uint64(len(f.events)) {
		return nil, f.more
	}
	return f.events[since:], f.more
}

func (f *fake) Watch(ctx context.Context, since uint64, fn func(client.Event) error) (err error) {
	if err := f.call("watch %d", since); err != nil {
		return err
	}
	if f.watched != nil {
		defer func() { f.watched <- err }()
	}
	for {
		events, more := f.after(since)
		for _, e := range events {
			if err := fn(e); err != nil {
				return err
			}
			since = e.Seq
		}
		if len(events) > 0 {
			continue
		}
		select {
		case <-more:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

func (f *fake) LastEvent(context.Context) (uint64, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return uint64(len(f.events)), f.fail
}

func (f *fake) Status(ctx context.Context) (client.Status, error) {
	if f.hooks.status != nil {
		return f.hooks.status(ctx)
	}
	return answer1[client.Status](f, "status")
}

func (f *fake) Identity(context.Context) (client.Identity, error) {
	return answer1[client.Identity](f, "id")
}

func (f *fake) Shutdown(_ context.Context, stopJobs bool) error {
	return f.call("shutdown %v", stopJobs)
}

func (f *fake) Netcheck(context.Context) (client.Netcheck, error) {
	return answer1[client.Netcheck](f, "netcheck")
}

func (f *fake) Ping(_ context.Context, peer string) (client.PeerPing, error) {
	return answer1[client.PeerPing](f, "ping %s", peer)
}

func (f *fake) Submit(ctx context.Context, r client.SubmitRequest, progress func(client.Progress)) (client.Job, error) {
	if f.hooks.submit != nil {
		return f.hooks.submit(ctx, r, progress)
	}
	progress(client.Progress{Phase: "image", Done: 1, Total: 2})
	return answer1[client.Job](f, "submit %s %d %s %s", r.Spec.Image, r.Spec.Memory, r.Dir, r.Key)
}

func (f *fake) Quote(_ context.Context, r client.SubmitRequest, _ func(client.Progress)) (client.Quote, error) {
	return answer1[client.Quote](f, "quote %s %s with %d secrets", r.Spec.Image, r.Dir, len(r.Secrets))
}

func (f *fake) Jobs(_ context.Context, all bool) ([]client.Job, error) {
	return answer1[[]client.Job](f, "jobs %v", all)
}

func (f *fake) Job(_ context.Context, ref string) (client.JobDetail, error) {
	if f.hooks.job != nil {
		return f.hooks.job(), nil
	}
	return answer1[client.JobDetail](f, "job %s", ref)
}

func (f *fake) StopJob(_ context.Context, ref string, grace time.Duration) (client.Job, error) {
	return answer1[client.Job](f, "stop %s %s", ref, grace)
}

func (f *fake) Logs(ctx context.Context, ref string, q client.LogQuery, fn func(int, client.LogRecord) error) error {
	if err := f.call("logs %s %d %d %s %v", ref, q.Task, q.From, q.Since.Format(time.RFC3339), q.Follow); err != nil {
		return err
	}
	if f.hooks.logs != nil {
		return f.hooks.logs(ctx, q, fn)
	}
	return nil
}

func (f *fake) GetOutputs(_ context.Context, ref, dest string, task int, _ func(client.Progress)) (client.Fetched, error) {
	return answer1[client.Fetched](f, "get %s %s %d", ref, dest, task)
}

func (f *fake) Connect(ctx context.Context, ref string, task int, port uint16, accept func() (Half, error)) error {
	if err := f.call("port %s %d %d", ref, task, port); err != nil || f.hooks.port == nil {
		return err
	}
	return f.hooks.port(ctx, accept)
}

func (f *fake) Exec(ctx context.Context, ref string, r client.ExecRequest, tty ExecIO) (int, error) {
	if err := f.call("exec %s %v", ref, r.Command); err != nil {
		return 0, err
	}
	return f.hooks.exec(ctx, r, tty)
}

func (f *fake) Offers(_ context.Context, gpu string) ([]client.ProviderOffer, error) {
	return answer1[[]client.ProviderOffer](f, "offers %s", gpu)
}

func (f *fake) LoadImage(_ context.Context, r client.PathRequest, _ func(client.Progress)) (client.Image, error) {
	return answer1[client.Image](f, "load %s %s%s", r.Path, r.Name, r.Platform)
}

func (f *fake) ImageFrom(_ context.Context, r client.FromRequest, _ func(client.Progress)) (client.Image, error) {
	return answer1[client.Image](f, "from %s %s %v %v", r.Program, r.Name, r.Entrypoint, r.Files)
}

func (f *fake) Images(context.Context) ([]client.Image, error) {
	return answer1[[]client.Image](f, "images")
}

func (f *fake) RemoveImage(_ context.Context, ref string) error { return f.call("rmi %s", ref) }

func (f *fake) Add(_ context.Context, r client.PathRequest, _ func(client.Progress)) (client.Added, error) {
	return answer1[client.Added](f, "add %s", r.Path)
}

func (f *fake) Cat(ctx context.Context, path string, w io.Writer) error {
	if err := f.call("cat %s", path); err != nil {
		return err
	}
	return f.hooks.cat(ctx, w)
}

func (f *fake) Pin(_ context.Context, r client.PinRequest, _ func(client.Progress)) (client.Added, error) {
	return answer1[client.Added](f, "pin %s %v", r.CID, r.From)
}

func (f *fake) ExportDAG(_ context.Context, cid string, w io.Writer) error {
	if err := f.call("export %s", cid); err != nil {
		return err
	}
	_, err := io.WriteString(w, "car of "+cid)
	return err
}

func (f *fake) ImportDAG(_ context.Context, car io.Reader, progress func(client.Progress)) (client.Imported, error) {
	head := make([]byte, 4)
	if _, err := io.ReadFull(car, head); err != nil {
		return client.Imported{}, err
	}
	progress(client.Progress{Phase: "importing", Done: 4})
	if err := f.call("import %s", head); err != nil {
		return client.Imported{}, err
	}
	if _, err := io.Copy(io.Discard, car); err != nil {
		return client.Imported{}, err
	}
	return filled[client.Imported](), nil
}

func (f *fake) AddStream(_ context.Context, r io.Reader, _ func(client.Progress)) (client.Added, error) {
	n, err := io.Copy(io.Discard, r)
	if err != nil {
		return client.Added{}, err
	}
	return answer1[client.Added](f, "addstream %d", n)
}

func (f *fake) List(_ context.Context, path string) ([]client.DirEntry, error) {
	return answer1[[]client.DirEntry](f, "ls %s", path)
}

func (f *fake) GetPath(_ context.Context, r client.GetRequest, _ func(client.Progress)) (client.Got, error) {
	return answer1[client.Got](f, "getpath %s %s", r.Path, r.Dest)
}

func (f *fake) Caches(context.Context) ([]client.Cache, error) {
	return answer1[[]client.Cache](f, "caches")
}

func (f *fake) DropCache(_ context.Context, id string) error { return f.call("dropcache %s", id) }

func (f *fake) Unpin(_ context.Context, cid string) error { return f.call("unpin %s", cid) }
func (f *fake) Pins(context.Context) ([]client.Pin, error) {
	return answer1[[]client.Pin](f, "pins")
}

func (f *fake) CheckBlocks(_ context.Context, progress func(client.Progress)) (client.Checked, error) {
	progress(client.Progress{Phase: "checking", Done: 1, Total: 2})
	return answer1[client.Checked](f, "check")
}

func (f *fake) GC(context.Context) (client.Collected, error) {
	return answer1[client.Collected](f, "gc")
}

func (f *fake) ProviderPause(context.Context) (client.ProviderStats, error) {
	return answer1[client.ProviderStats](f, "pause")
}

func (f *fake) ProviderResume(context.Context) (client.ProviderStats, error) {
	return answer1[client.ProviderStats](f, "resume")
}

func (f *fake) ProviderDrain(context.Context) (client.ProviderStats, error) {
	return answer1[client.ProviderStats](f, "drain")
}

func (f *fake) ProviderPrice(_ context.Context, r client.PriceRequest) (client.Prices, error) {
	return answer1[client.Prices](f, "price %s %s %v", r.CPU, r.GPU, r.By)
}

func (f *fake) Wallet(context.Context) (client.Wallet, error) {
	return answer1[client.Wallet](f, "wallet")
}

func (f *fake) Statement(_ context.Context, since time.Time) (client.Statement, error) {
	return answer1[client.Statement](f, "statement %s", since.Format(time.RFC3339))
}

func (f *fake) Contracts(context.Context) ([]client.Contract, error) {
	return answer1[[]client.Contract](f, "contracts")
}
