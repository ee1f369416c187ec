// A vCenter for tests: VMware's own simulator, made stricter where it is kinder than a real one.
//
// The simulator lets anybody into /folder, makes folders that are missing, takes a full disk for a success, tells a
// made-up amount of room and lets every user do everything. What is here puts that right, so that a client that relies
// on it is found out.
package main

import (
	"bytes"
	"crypto/tls"
	"flag"
	"fmt"
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"sync"
	"syscall"

	"github.com/vmware/govmomi/simulator"
	"github.com/vmware/govmomi/vim25/methods"
	"github.com/vmware/govmomi/vim25/mo"
	"github.com/vmware/govmomi/vim25/soap"
	"github.com/vmware/govmomi/vim25/types"
)

const folder = "/folder/"

func main() {
	listen := flag.String("listen", "", "address and port")
	certificate := flag.String("certificate", "", "PEM file with key and chain")
	user := flag.String("user", "", "who may do everything")
	reader := flag.String("reader", "", "who may only look; both have the password in VCSIM_PASSWORD")
	flag.Parse()
	pair, err := tls.LoadX509KeyPair(*certificate, *certificate)
	if err != nil {
		log.Fatal(err)
	}
	model := simulator.VPX()
	if err := model.Create(); err != nil {
		log.Fatal(err)
	}
	defer model.Remove()
	service := model.Service
	password := os.Getenv("VCSIM_PASSWORD")
	service.Listen = &url.URL{Host: *listen, User: url.UserPassword(*user, password)}
	service.Context.Map.SessionManager().ValidLogin = func(login *types.Login) bool {
		return (login.UserName == *user || login.UserName == *reader) && login.Password == password
	}
	service.TLS = &tls.Config{Certificates: []tls.Certificate{pair}}
	service.Context.Map.Handler = (&gate{reader: *reader, asked: map[types.ManagedObjectReference]bool{}}).handle
	server := service.NewServer()
	defer server.Close()
	server.Config.Handler = &files{service, *user, *reader, server.Config.Handler}
	fmt.Println("ready")
	over := make(chan os.Signal, 1)
	signal.Notify(over, syscall.SIGTERM, syscall.SIGINT)
	<-over
}

// gate is what each call passes first.
type gate struct {
	sync.Mutex
	reader string
	asked  map[types.ManagedObjectReference]bool
}

// handle refuses what a reader may not do. It also has datastores looked at when somebody asks for that, as on a real
// server: the simulator's own RefreshDatastore says a terabyte, and what is read next is the truth.
func (g *gate) handle(ctx *simulator.Context, method *simulator.Method) (mo.Reference, types.BaseMethodFault) {
	g.Lock()
	defer g.Unlock()
	switch method.Name {
	case "RefreshDatastore":
		g.asked[method.This] = true
	case "RetrieveProperties", "RetrievePropertiesEx", "Fetch":
		for ref := range g.asked {
			if store, ok := ctx.Map.Get(ref).(*simulator.Datastore); ok {
				look(ctx, store)
			}
		}
		clear(g.asked)
	case "CopyDatastoreFile_Task":
		if refused(ctx, method.Name) {
			return nil, &types.NotSupported{}
		}
		fallthrough
	case "MakeDirectory", "MoveDatastoreFile_Task", "DeleteDatastoreFile_Task":
		if ctx.Session != nil && ctx.Session.UserName == g.reader {
			return nil, &types.NoPermission{Object: &method.This, PrivilegeId: "Datastore.FileManagement"}
		}
	}
	return nil, nil
}

// refused says whether the server is one that cannot do this: if a file .refuse in a datastore names it.
func refused(ctx *simulator.Context, name string) bool {
	for _, entity := range ctx.Map.All("Datastore") {
		if store, ok := entity.(*simulator.Datastore); ok {
			word, err := os.ReadFile(filepath.Join(store.Summary.Url, ".refuse"))
			if err == nil && string(word) == name {
				return true
			}
		}
	}
	return false
}

// look sees how much room there is. A file .state in a datastore says what else is the matter with it.
func look(ctx *simulator.Context, store *simulator.Datastore) {
	var disk syscall.Statfs_t
	if err := syscall.Statfs(store.Summary.Url, &disk); err != nil {
		log.Print(err)
		return
	}
	block := int64(disk.Bsize)
	maintenance, accessible := "normal", true
	if state, err := os.ReadFile(filepath.Join(store.Summary.Url, ".state")); err == nil {
		maintenance, accessible = string(state), string(state) != "inaccessible"
	}
	ctx.Map.AtomicUpdate(ctx, store, []types.PropertyChange{
		{Name: "summary.capacity", Val: int64(disk.Blocks) * block},
		{Name: "summary.freeSpace", Val: int64(disk.Bavail) * block},
		{Name: "summary.maintenanceMode", Val: maintenance},
		{Name: "summary.accessible", Val: accessible},
	})
}

// files is the access to datastores over HTTP.
type files struct {
	service *simulator.Service
	user    string
	reader  string
	rest    http.Handler
}

func (f *files) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if strings.HasPrefix(r.URL.Path, folder) {
		change := r.Method != http.MethodGet && r.Method != http.MethodHead
		switch {
		case f.knows(r, f.user):
		case !f.knows(r, f.reader):
			w.WriteHeader(http.StatusUnauthorized)
			return
		case change:
			w.WriteHeader(http.StatusForbidden)
			return
		}
		if change {
			w.WriteHeader(f.put(r))
			return
		}
		w = bare{w}
	} else if f.loses(r) {
		f.rest.ServeHTTP(httptest.NewRecorder(), r)
		panic(http.ErrAbortHandler) // hangs up
	}
	f.rest.ServeHTTP(w, r)
}

// loses says whether the call is to be done without an answer: if it is the one in the first line of a file .lose in a
// datastore, which then loses that line.
func (f *files) loses(r *http.Request) bool {
	for _, entity := range f.service.Context.Map.All("Datastore") {
		path := filepath.Join(f.root(entity.Entity().Name), ".lose")
		lines, err := os.ReadFile(path)
		if err != nil {
			continue
		}
		body, err := io.ReadAll(r.Body)
		if err != nil {
			return false
		}
		r.Body = io.NopCloser(bytes.NewReader(body))
		name, rest, _ := bytes.Cut(lines, []byte("\n"))
		if len(name) > 0 && bytes.Contains(body, append([]byte("<"), name...)) {
			return os.WriteFile(path, rest, 0o600) == nil
		}
	}
	return false
}

// knows says whether the request belongs to a session of this user.
func (f *files) knows(r *http.Request, user string) bool {
	cookie, err := r.Cookie(soap.SessionCookieName)
	if err != nil {
		return false
	}
	call := types.SessionIsActive{SessionID: cookie.Value, UserName: user}
	body := f.service.Context.Map.SessionManager().SessionIsActive(f.service.Context, &call)
	active, ok := body.(*methods.SessionIsActiveBody)
	return ok && active.Res != nil && active.Res.Returnval
}

// put writes a file, whose folder must exist, and keeps what came where the rest did not.
func (f *files) put(r *http.Request) int {
	if r.Method != http.MethodPut {
		return http.StatusMethodNotAllowed
	}
	root := f.root(r.URL.Query().Get("dsName"))
	if root == "" || strings.Contains(r.URL.Path, "..") {
		return http.StatusNotFound
	}
	path := filepath.Join(root, strings.TrimPrefix(r.URL.Path, folder))
	status := http.StatusCreated
	if _, err := os.Stat(path); err == nil {
		status = http.StatusOK
	}
	file, err := os.Create(path)
	if os.IsNotExist(err) {
		return http.StatusNotFound
	}
	if err != nil {
		return http.StatusInternalServerError
	}
	defer file.Close()
	if _, err := io.CopyBuffer(onlyWriter{file}, r.Body, make([]byte, 1<<20)); err != nil {
		return http.StatusInternalServerError
	}
	return status
}

// root is the folder on this machine that is the datastore.
func (f *files) root(name string) string {
	for _, entity := range f.service.Context.Map.All("Datastore") {
		if store, ok := entity.(*simulator.Datastore); ok && store.Name == name {
			return store.Summary.Url
		}
	}
	return ""
}

// onlyWriter hides the file's ReadFrom, which would come with a small buffer of its own.
type onlyWriter struct{ io.Writer }

// bare leaves out what a real server does not tell of a file.
type bare struct{ http.ResponseWriter }

func (b bare) WriteHeader(status int) {
	b.Header().Del("Last-Modified")
	b.ResponseWriter.WriteHeader(status)
}
