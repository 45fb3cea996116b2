// cudacheck tries the GPUs that it finds: the program of `make gpu-check`, which
// runs it inside a lumbung job and outside. It needs the driver's libcuda.so.1
// and no toolkit; the kernels are PTX, which the driver compiles.
//
//	cudacheck devices              what cards there are
//	cudacheck vadd                 adds two vectors and checks every element
//	cudacheck gemm [N]             multiplies two N by N matrices and times it
//	cudacheck hold SECONDS MIB     keeps memory, and the card busy
//
// It ends with 0 when all was right, 1 when a figure was wrong, 3 when there is
// no driver or no card. A line on stdout says what was done.
#include <dlfcn.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#ifndef KERNELS
#error "build with -DKERNELS=\"path of kernels.ptx\""
#endif
__asm__(".section .rodata\n.global kernels\nkernels:\n.incbin \"" KERNELS "\"\n.byte 0\n.previous\n");
extern const char kernels[];

typedef int result;
typedef int device;
typedef void *handle;
typedef unsigned long long address;

static result (*cuInit)(unsigned);
static result (*cuDriverGetVersion)(int *);
static result (*cuDeviceGetCount)(int *);
static result (*cuDeviceGet)(device *, int);
static result (*cuDeviceGetName)(char *, int, device);
static result (*cuDeviceTotalMem)(size_t *, device);
static result (*cuCtxCreate)(handle *, unsigned, device);
static result (*cuCtxDestroy)(handle);
static result (*cuCtxSynchronize)(void);
static result (*cuModuleLoadData)(handle *, const void *);
static result (*cuModuleGetFunction)(handle *, handle, const char *);
static result (*cuMemAlloc)(address *, size_t);
static result (*cuMemFree)(address);
static result (*cuMemcpyHtoD)(address, const void *, size_t);
static result (*cuMemcpyDtoH)(void *, address, size_t);
static result (*cuLaunchKernel)(handle, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned, handle, void **, void **);
static result (*cuGetErrorString)(result, const char **);

static const struct {
	const char *name;
	void *to;
} symbols[] = {
	{"cuInit", &cuInit},
	{"cuDriverGetVersion", &cuDriverGetVersion},
	{"cuDeviceGetCount", &cuDeviceGetCount},
	{"cuDeviceGet", &cuDeviceGet},
	{"cuDeviceGetName", &cuDeviceGetName},
	{"cuDeviceTotalMem_v2", &cuDeviceTotalMem},
	{"cuCtxCreate_v2", &cuCtxCreate},
	{"cuCtxDestroy_v2", &cuCtxDestroy},
	{"cuCtxSynchronize", &cuCtxSynchronize},
	{"cuModuleLoadData", &cuModuleLoadData},
	{"cuModuleGetFunction", &cuModuleGetFunction},
	{"cuMemAlloc_v2", &cuMemAlloc},
	{"cuMemFree_v2", &cuMemFree},
	{"cuMemcpyHtoD_v2", &cuMemcpyHtoD},
	{"cuMemcpyDtoH_v2", &cuMemcpyDtoH},
	{"cuLaunchKernel", &cuLaunchKernel},
	{"cuGetErrorString", &cuGetErrorString},
};

static void missing(const char *what)
{
	fprintf(stderr, "cudacheck: %s\n", what);
	exit(3);
}

static void try(result r, const char *what)
{
	const char *why = "unknown error";
	if (r == 0)
		return;
	if (cuGetErrorString)
		cuGetErrorString(r, &why);
	fprintf(stderr, "cudacheck: %s: %s (%d)\n", what, why, r);
	exit(strncmp(what, "open", 4) ? 1 : 3);
}

static void open_driver(void)
{
	void *lib = dlopen("libcuda.so.1", RTLD_NOW);
	if (!lib)
		missing(dlerror());
	for (size_t i = 0; i < sizeof symbols / sizeof *symbols; i++) {
		void *at = dlsym(lib, symbols[i].name);
		if (!at)
			missing(dlerror());
		memcpy(symbols[i].to, &at, sizeof at);
	}
	try(cuInit(0), "open the driver");
}

static double now(void)
{
	struct timespec t;
	clock_gettime(CLOCK_MONOTONIC, &t);
	return t.tv_sec + t.tv_nsec / 1e9;
}

static handle context, module;

static void open_card(void)
{
	int count = 0;
	device d;
	open_driver();
	try(cuDeviceGetCount(&count), "open the cards");
	if (count == 0)
		missing("there is no card");
	try(cuDeviceGet(&d, 0), "open the first card");
	try(cuCtxCreate(&context, 0, d), "open a context");
	try(cuModuleLoadData(&module, kernels), "load the kernels");
}

static address upload(const void *data, size_t size)
{
	address at;
	try(cuMemAlloc(&at, size), "allocate memory of the card");
	if (data)
		try(cuMemcpyHtoD(at, data, size), "copy to the card");
	return at;
}

static void launch(const char *name, unsigned grid_x, unsigned grid_y, unsigned block_x, unsigned block_y, address a, address b, address c, unsigned n)
{
	handle f;
	void *args[] = {&a, &b, &c, &n};
	try(cuModuleGetFunction(&f, module, name), name);
	try(cuLaunchKernel(f, grid_x, grid_y, 1, block_x, block_y, 1, 0, NULL, args, NULL), name);
}

// numbers makes figures that repeat from run to run, between -1 and 1.
static float *numbers(size_t n, uint32_t seed)
{
	float *v = malloc(n * sizeof *v);
	if (!v)
		missing("not enough memory");
	for (size_t i = 0; i < n; i++) {
		seed = seed * 1664525u + 1013904223u;
		v[i] = (float)(seed >> 8) / (1 << 23) - 1;
	}
	return v;
}

static int devices(void)
{
	int count = 0, version = 0;
	open_driver();
	try(cuDeviceGetCount(&count), "open the cards");
	try(cuDriverGetVersion(&version), "ask for the version");
	printf("%d cards, CUDA %d.%d\n", count, version / 1000, version % 1000 / 10);
	for (int i = 0; i < count; i++) {
		char name[128] = "";
		size_t memory = 0;
		device d;
		try(cuDeviceGet(&d, i), "open a card");
		try(cuDeviceGetName(name, sizeof name, d), "ask for a name");
		try(cuDeviceTotalMem(&memory, d), "ask for the memory");
		printf("card %d: %s, %zu MiB\n", i, name, memory >> 20);
	}
	return count ? 0 : 3;
}

static int vadd(void)
{
	const unsigned n = (1 << 24) + 7; // the last block is not full
	float *a = numbers(n, 1), *b = numbers(n, 2), *c = numbers(n, 3);
	open_card();
	address da = upload(a, n * 4ul), db = upload(b, n * 4ul), dc = upload(c, n * 4ul);
	launch("vadd", (n + 255) / 256, 1, 256, 1, da, db, dc, n);
	try(cuCtxSynchronize(), "add");
	try(cuMemcpyDtoH(c, dc, n * 4ul), "copy from the card");
	for (unsigned i = 0; i < n; i++) {
		if (c[i] != a[i] + b[i]) {
			printf("vadd wrong: element %u is %g, not %g\n", i, c[i], a[i] + b[i]);
			return 1;
		}
	}
	printf("vadd ok: %u elements\n", n);
	return 0;
}

static int gemm(unsigned n)
{
	size_t size = (size_t)n * n;
	float *a = numbers(size, 1), *b = numbers(size, 2), *c = numbers(size, 3);
	int rounds = 0;
	double began, took;
	open_card();
	address da = upload(a, size * 4), db = upload(b, size * 4), dc = upload(c, size * 4);
	launch("gemm", n / 16, n / 16, 16, 16, da, db, dc, n); // the first one warms up
	try(cuCtxSynchronize(), "multiply");
	began = now();
	do {
		for (int i = 0; i < 10; i++)
			launch("gemm", n / 16, n / 16, 16, 16, da, db, dc, n);
		try(cuCtxSynchronize(), "multiply");
		rounds += 10;
		took = now() - began;
	} while (took < 3);
	try(cuMemcpyDtoH(c, dc, size * 4), "copy from the card");
	for (unsigned k = 0; k < 256; k++) { // elements all over the matrix
		unsigned row = (unsigned)((k * 2654435761u) % n), column = (unsigned)((k * 40503u + 7) % n);
		double want = 0, off;
		for (unsigned i = 0; i < n; i++)
			want += (double)a[(size_t)row * n + i] * b[(size_t)i * n + column];
		off = c[(size_t)row * n + column] - want;
		if (off > 0.01 || off < -0.01 || off != off) {
			printf("gemm wrong: element %u,%u is %g, not %g\n", row, column, c[(size_t)row * n + column], want);
			return 1;
		}
	}
	printf("gemm ok: n=%u rounds=%d seconds=%.3f gflops=%.1f\n", n, rounds, took, 2.0 * n * n * n * rounds / took / 1e9);
	return 0;
}

static int hold(double seconds, size_t mib)
{
	const unsigned n = 1024;
	size_t size = (size_t)n * n * 4;
	float *a = numbers((size_t)n * n, 1);
	open_card();
	address da = upload(a, size), db = upload(a, size), dc = upload(NULL, size), kept = upload(NULL, mib << 20);
	double end = now() + seconds;
	printf("hold began at %lld with %zu MiB\n", (long long)time(NULL), mib);
	fflush(stdout);
	while (now() < end) {
		launch("gemm", n / 16, n / 16, 16, 16, da, db, dc, n);
		try(cuCtxSynchronize(), "multiply");
	}
	try(cuMemFree(kept), "free memory of the card");
	try(cuCtxDestroy(context), "close the context");
	printf("hold ended at %lld\n", (long long)time(NULL));
	return 0;
}

int main(int argc, char **argv)
{
	const char *what = argc > 1 ? argv[1] : "";
	if (!strcmp(what, "devices") && argc == 2)
		return devices();
	if (!strcmp(what, "vadd") && argc == 2)
		return vadd();
	if (!strcmp(what, "gemm") && argc <= 3) {
		long n = argc == 3 ? atol(argv[2]) : 4096;
		if (n >= 16 && n <= 32768 && n % 16 == 0)
			return gemm((unsigned)n);
	}
	if (!strcmp(what, "hold") && argc == 4 && atof(argv[2]) > 0 && atol(argv[3]) > 0)
		return hold(atof(argv[2]), (size_t)atol(argv[3]));
	fprintf(stderr, "usage: cudacheck devices | vadd | gemm [N, a multiple of 16] | hold SECONDS MIB\n");
	return 2;
}
