#!/usr/bin/env python3
"""Cuts the golden folder of the original program down to the small one in tests/golden.

usage: scripts/golden-subset.py FULL_FOLDER

Keeps, of the cases below, the files and tensors that the tests read; numbers are copied, never computed.
Only the Python standard library.
"""

import fnmatch
import json
import pathlib
import shutil
import struct
import sys

LOSSES = ['x0', 'attention_mask', 'u_t', 'u_mask', 't_sampled', 'grad_backbone_logits', 'grad_backbone_logits_x0']
LOSSES += [part + suffix for part in ('loss', 'token_nll') for suffix in ('', '.f64')]
STEPS = ['x_t', 't', 'dt', 'u', 'probs', 'x_next', 'p_x0_given']

# Case: {file pattern: tensor patterns}; no tensor patterns for files that are copied whole.
KEPT = {
    'a_noise': {'*': ['*']},
    'b_dit': {'io.safetensors': ['*'], 'weights.safetensors': ['*']},
    'c_ar': {'io.safetensors': ['*'], 'weights.safetensors': ['*']},
    'c_dimamba_*': {'*': ['*']},
    'd_param_mask_*': {'*': ['*']},
    'e_losses': {
        f'{name}.safetensors': LOSSES
        for name in (
            'subs subs_timecond subs_mask_inside subs_T1000 subs_importance subs_change_of_variables '
            'subs_geometric d3pm_T1000 d3pm_T1000_subs_masking sedd ar'
        ).split()
    }
    | {f'{name}.safetensors': ['*'] for name in ('crop_subs', 'crop_ar', 'metrics')},
    'f_ar_sampler': {'*': ['*']},
    'f_semi_ar': {'subs.safetensors': ['*'], 'subs_timecond.safetensors': ['*']},
    'f_steps': {'*': STEPS},
    'f_trajectories': {
        f'{name}.safetensors': ['*']
        for name in (
            'subs_ddpm_cache subs_ddpm_cache_timecond subs_ddpm sedd_analytic d3pm_ddpm'
        ).split()
    },
    'g_ema': {'*': ['*']},
    'g_lr': {'*': ['*']},
    'g_t': {'*': ['*']},
    'j_train': {'steps.safetensors': ['*'], 'final.safetensors': ['param/*', 'ema/*']},
    'models': {'*': ['*']},
    **{
        f'n_block_{name}': {'*.safetensors': ['*']}
        for name in 'cache exact mask noise resample stop t val'.split()
    },
    'n_block_losses': {
        f'{name}.safetensors': ['*']
        for name in 'b_train b_eval b_clip0 b_clip2 b1_nll bL_train bL_mdlm b_mask_inside'.split()
    },
    'n_block_net': {
        'weights.safetensors': ['*'],
        'b4.safetensors': ['x0', 'xt', 'sigma', 'grad_out', 'logits*'],
        'b4.grads.safetensors': ['grad64/*'],
        'b16.safetensors': ['x0', 'xt', 'sigma', 'grad_out', 'logits*'],
        'b16.grads.safetensors': ['grad64/*'],
    },
    'n_block_steps': {'fhs*.safetensors': ['*'], 'ddpm_nucleus.safetensors': ['*']},
    'n_block_traj': {f'{name}.safetensors': ['*'] for name in 'fhs fhs_b1 fhs_nucleus fhs_window'.split()},
    'l_llada': {'hf/*': ['*'], 'shards/*': ['*'], 'io.safetensors': ['*']},
    'l_dream': {'hf/*': ['*'], 'io.safetensors': ['*']},
    'l_qwen3': {'hf/*': ['*'], 'io.safetensors': ['*']},
    'l_gpt2': {'hf/*': ['*'], 'io.safetensors': ['*']},
    'l_llada_gen': {'*': ['*']},
    'l_dream_gen': {'*': ['*']},
    'l_likelihood': {'*': ['*']},
    'l_loss': {'loss.safetensors': ['*']},
    'l_lora': {'llada_all_linear/*': ['*'], 'gpt2_attention/*': ['*'], 'dream_attention/*': ['*']},
    'l_chat': {'*': ['*']},
}

# Copied by hand: n_block_hf/bd3lm and n_block_search/intervals.json.

# The same of `u_manifest.json`, the cases of uniform and hybrid diffusion.
KEPT_UNIFORM = {
    **{
        name: {'*.safetensors': ['*']}
        for name in (
            'u_duo_loss u_duo_nll u_duo_posterior u_duo_trajectories u_gidd_loss u_gidd_self_correction u_gidd_trajectories '
            'u_duo_curriculum u_duo_psi_kappa u_duo_schedule u_duo_transform u_gidd_schedule u_models_duo u_udlm_loss u_udlm_trajectories '
            'u_universal'
        ).split()
    },
    'u_ckpt_duo': {'hf/*': ['*'], '*.safetensors': ['*'], 'last.ckpt': ['*']},
    'u_ckpt_gidd': {'hf/*': ['*'], 'io.safetensors': ['*']},
    'u_ckpt_udlm': {'hf_*': ['*'], 'io.safetensors': ['*']},
    'u_models_ddg': {'dit.safetensors': ['*'], 'io.safetensors': ['*']},
}


def cut(source, target, patterns):
    """Copies the matching tensors of one safetensors file; returns their names."""
    raw = source.read_bytes()
    size = struct.unpack('<Q', raw[:8])[0]
    head, body = json.loads(raw[8 : 8 + size]), raw[8 + size :]
    kept, data = {}, b''
    for name, about in head.items():
        if name == '__metadata__' or not any(fnmatch.fnmatchcase(name, p) for p in patterns):
            continue
        first, last = about['data_offsets']
        kept[name] = {**about, 'data_offsets': [len(data), len(data) + last - first]}
        data += body[first:last]
    text = json.dumps(kept, separators=(',', ':')).encode()
    text += b' ' * (-len(text) % 8)
    target.write_bytes(struct.pack('<Q', len(text)) + text + data)


def copy(source, target, patterns):
    """Copies a file that is no tensors."""
    shutil.copyfile(source, target)


def cut_cases(full, small, name, wanted):
    """Cuts the cases of one manifest; those that are copied by hand (files other than tensors) stay."""
    manifest = json.loads((full / name).read_text())
    cases, old = [], []
    if (small / name).exists():
        old = json.loads((small / name).read_text())['cases']
    for case in manifest['cases']:
        files = next((f for pattern, f in wanted.items() if fnmatch.fnmatchcase(case['case'], pattern)), None)
        if files is None:
            continue
        folder = small / case['case']
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        kept = {}
        for file in case['files']:
            for pattern, tensors in files.items():
                if fnmatch.fnmatchcase(file, pattern):
                    (folder / file).parent.mkdir(exist_ok=True)
                    copied = cut if file.endswith('.safetensors') else copy
                    copied(full / case['case'] / file, folder / file, tensors)
                    kept[file] = {}
        drop = ('readme', 'title', 'f32_vs_f64_max_abs', 'f32_vs_f64_max_abs_token_nll', 'files')
        cases.append({**{k: v for k, v in case.items() if k not in drop}, 'files': kept})
    made = {case['case'] for case in cases}
    cases = sorted(cases + [case for case in old if case['case'] not in made], key=lambda case: case['case'])
    text = json.dumps({'cases': cases}, indent=1, sort_keys=True)
    (small / name).write_text(text + '\n')


def main():
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    full = pathlib.Path(sys.argv[1])
    small = pathlib.Path(__file__).resolve().parent.parent / 'tests' / 'golden'
    cut_cases(full, small, 'manifest.json', KEPT)
    cut_cases(full, small, 'u_manifest.json', KEPT_UNIFORM)


main()
